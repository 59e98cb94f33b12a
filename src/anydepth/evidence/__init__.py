"""A study that decides whether any-depth training keeps its promises: plan, jobs, comparison and page."""

"""One job or a sweep of jobs: folders, records, provenance, and what makes two runs the same."""

"""HTML page that compares runs."""

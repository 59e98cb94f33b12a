"""The HTML page that compares runs."""

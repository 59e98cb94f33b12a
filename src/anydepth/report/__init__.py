"""Comparison of training runs: settings, claims, and the HTML page."""

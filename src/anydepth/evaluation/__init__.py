"""Accuracy, cost and feature compatibility of a detector at each depth."""

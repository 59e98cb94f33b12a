"""Logging to Weights & Biases, beside Lightning's own CSV logger."""

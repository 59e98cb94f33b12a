"""Where a run logs to: CSV files and Weights & Biases."""

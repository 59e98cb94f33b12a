"""Output files of one run: tables, charts, pictures, video, and media for Weights & Biases."""

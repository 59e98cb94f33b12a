"""What one run writes: tables, charts, pictures, video, and media for Weights & Biases."""

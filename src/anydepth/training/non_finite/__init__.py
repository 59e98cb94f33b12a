"""Losses and gradients that are NaN or infinite: detection, diagnosis and recorded steps."""

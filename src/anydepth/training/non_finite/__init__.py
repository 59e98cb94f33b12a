"""NaN and infinite losses and gradients: detection, diagnosis and recorded steps."""

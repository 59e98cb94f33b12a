"""What runs a bundle: numpy, Pillow and one inference engine, never torch."""

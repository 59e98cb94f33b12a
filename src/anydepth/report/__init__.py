"""Tables and pictures that show what a detector does."""

"""Checkpoints: writing them whole, finding the newest one, and resuming from it."""

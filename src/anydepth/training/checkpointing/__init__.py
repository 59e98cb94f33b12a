"""Checkpoints: writing them safely, finding the newest one, and resuming from it."""

"""Configuration: composing it with Hydra, what it may build, and readable errors."""

"""User tools behind the console scripts ``anydepth-data`` and ``anydepth-replay``."""

"""Makes the helpers of this folder (runs, steps, bad_steps) importable in the folders below it."""

"""Evidence of a set of runs for the claims of the method."""

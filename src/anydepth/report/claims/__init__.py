"""What a set of runs says about the claims of the method."""

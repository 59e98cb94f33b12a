"""Training callbacks: depth sampling, averaged weights, progress, time limit and checks."""

"""Callbacks of training: depth sampling, averaged weights, progress, time limit and checks."""

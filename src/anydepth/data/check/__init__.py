"""Checks of a data set before training: every picture and every annotation."""

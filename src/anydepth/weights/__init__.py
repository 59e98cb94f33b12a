"""Weights of any origin: reading files safely, planning what goes where, and the load report."""

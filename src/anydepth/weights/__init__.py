"""Loading weights of any origin: safe reading of files, mapping of names, and the load report."""

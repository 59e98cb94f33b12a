"""Single jobs and sweeps: folders, records, provenance and the identity of runs."""

"""Public data sets: download, checksums and unpacking."""

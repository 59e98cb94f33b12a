"""Small helpers for files, messages and YAML that know nothing of detectors."""

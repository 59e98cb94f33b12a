"""Small helpers for files, messages and YAML that do not depend on the rest of the package."""

"""Making bundles of detectors, with torch."""

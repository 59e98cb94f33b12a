"""Loading of published and own weights into detectors of the DETR family."""

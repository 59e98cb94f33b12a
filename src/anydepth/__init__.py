"""Any-depth object detection: one network, one set of weights, depth chosen at inference."""

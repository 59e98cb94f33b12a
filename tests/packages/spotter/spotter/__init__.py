"""A detector family in miniature: one map of class scores and boxes, with two stages that may be skipped."""

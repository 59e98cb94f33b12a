"""What a detector is worth and what it costs at each depth."""

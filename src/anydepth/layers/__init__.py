"""Building blocks of both wings: what switches with the depth, and what does not."""

"""Data sets in COCO format: packed index, decoding, augmentation, loaders, and an embedded sample."""

"""COCO-format annotations: reading, checking and packing them into shared memory."""

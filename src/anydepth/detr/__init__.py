"""The DETR family: AnyDepth-DETR and the fixed-depth RT-DETR built from the same modules."""

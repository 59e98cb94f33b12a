"""Conversion of Pascal VOC and YOLO data sets to COCO format."""

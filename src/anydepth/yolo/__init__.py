"""The YOLO family: AnyDepth-YOLO, whose stages split into two paths, and fixed-depth YOLOv12."""

"""The AnyDepth-YOLO wing: YOLOv12 whose stages split into essential and refinement paths."""

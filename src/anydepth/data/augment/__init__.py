"""Augmentation of training images as in RT-DETR and in YOLO."""

"""Augmentation of training images, RT-DETR's and YOLO's."""

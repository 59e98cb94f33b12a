"""Backbones of the DETR family: ResNet and Swin Transformer."""

"""Shards of training images in a folder, on a web server or in S3."""

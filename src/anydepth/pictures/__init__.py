"""Reading, resizing and placing pictures as arrays, with numpy and Pillow alone."""

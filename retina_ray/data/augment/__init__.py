"""Random changes of training images and their boxes, in numpy and OpenCV, repeatable by seed."""

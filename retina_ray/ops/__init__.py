"""Pure functions on tensors: boxes, anchors, assignment, losses, selection of detections.

Nothing here knows of Ray or of files; it runs wherever torch and torchvision run.
"""

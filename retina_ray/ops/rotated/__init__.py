"""Rotated boxes: overlap, anchors, box coder and suppression."""

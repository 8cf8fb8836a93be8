"""Training runs: the loop, checkpoints, tracking, and how Ray hosts them."""

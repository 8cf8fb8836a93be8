"""From the rows of a plan to batches: read, decode, augment, pack; through Ray Data or threads."""

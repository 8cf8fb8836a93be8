"""The page of a run: how it went, how good it is, and what is wrong with it."""

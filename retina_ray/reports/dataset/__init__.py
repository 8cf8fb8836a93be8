"""The page of a data set: what is in it, as stored and as training sees it."""

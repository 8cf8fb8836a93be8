"""Pages to look at: of a data set, of a run."""

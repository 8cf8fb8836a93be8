"""The plan of a run: which images form which batch, settled before anything is read."""

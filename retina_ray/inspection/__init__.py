"""Pages and analyses of data sets, made before any training."""

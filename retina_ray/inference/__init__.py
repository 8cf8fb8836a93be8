"""Trained models at work: predictions over data sets and images, without Ray."""

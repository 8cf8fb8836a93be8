"""A data set of drawn shapes with exact boxes."""

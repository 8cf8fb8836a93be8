"""All that we take from Ray's private modules: an update of Ray is checked here.

One module for each part of Ray, so that nobody imports more of it than is wanted. Everything was
tried with Ray 2.60; each says what it works round, and what a failure of it would cost.
"""

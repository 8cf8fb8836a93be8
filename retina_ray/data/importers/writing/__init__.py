"""From what a reader found to shards: cut into tasks, written here or on Ray.

A task depends on nothing but what it is given, and finished shards are noted, so an import resumes.
"""

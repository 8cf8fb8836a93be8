"""Files on a local disk or in a bucket: one way to open, write and copy them.

A remote storage that does not answer is asked again; a full disk is named.
"""

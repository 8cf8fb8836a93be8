"""Importers: one module for each annotation format, all of them ending in `convert`."""

"""Encoded images: their headers, whether they are complete, their pixels."""

"""Encoded images: their headers, whether they are whole, their pixels."""

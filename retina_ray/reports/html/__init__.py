"""The kit of all pages: templates, one style sheet, charts, boxes over images.

A page is a template that extends `page.html.j2` and takes its parts from `macros.html.j2`; it is
one file that refers to nothing outside itself, light or dark, wide or narrow.
"""

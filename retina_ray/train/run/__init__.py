"""A run on Ray, from its folder and its resources to its end."""

"""A checkpoint → a folder that others can use, and that folder → the hub."""

"""Passes that change the number format in which a graph computes."""

"""Passes that let a graph compute with 8-bit and 4-bit integers."""

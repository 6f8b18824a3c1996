"""Passes after which a graph computes the same with fewer or cheaper nodes of the same domain."""

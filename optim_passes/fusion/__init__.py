"""Passes that put one operator in the place of several, or the form that a target runs fastest."""

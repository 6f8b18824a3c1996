"""Does a model compute what it should? Comparing, and locating where it does not."""

"""Quantization measured: what it costs in accuracy, what it gains in time, and whether to accept it."""

"""Tracing without a framework: worlds, records, traced numbers, graphs, staged control flow."""

"""Passes over graphs: ``onnx_ir.Model`` in, a faster one that computes the same out."""

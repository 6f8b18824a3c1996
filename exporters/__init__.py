"""Frontends that turn eager code into ONNX models; they run none."""

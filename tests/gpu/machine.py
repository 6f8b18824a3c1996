"""Marks for tests that need a GPU: they are collected everywhere, and run where there is one."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

__all__ = ["HAS_CUDA", "ON_GPU", "PROVIDERS"]

HAS_CUDA = (
    torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
)
PROVIDERS = "cuda,cpu"
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device and onnxruntime-gpu"),
    # other versions of the libraries than the default suite's warn of other things
    pytest.mark.filterwarnings("ignore"),
]

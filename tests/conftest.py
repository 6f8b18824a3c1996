"""One thread each, for small models on many threads wait for each other; and operators for torchvision."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests import torchvision_shim

torch.set_num_threads(1)
torchvision_shim.install()  # before any library imports torchvision

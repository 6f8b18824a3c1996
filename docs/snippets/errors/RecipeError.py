import torch

import bridge

program = bridge.export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4))
bridge.quantize(program, "int3-weights")

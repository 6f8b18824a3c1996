import torch

import bridge

program = bridge.export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4))
batches = [torch.ones(3, 4), torch.full((3, 4), float("nan"))]
bridge.quantize(program, "int8-static", calibration=batches)

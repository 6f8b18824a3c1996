import torch

import bridge

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
program = bridge.export(model.eval(), torch.randn(64, 256))
batches = [torch.randn(64, 256) for _ in range(4)]
bridge.quantize(program, "int4-weights", calibration=batches, max_drop=0.001)

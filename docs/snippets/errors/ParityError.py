import torch

import bridge

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
x = torch.rand(3, 4)
program = bridge.export(model, x)

model[2] = torch.nn.Linear(8, 2).eval()  # eager moves on, the exported model does not
bridge.check(model, program, x).raise_for_mismatch()

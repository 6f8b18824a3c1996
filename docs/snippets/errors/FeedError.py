import torch

import bridge

program = bridge.export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4))
program(torch.ones(3, 5))

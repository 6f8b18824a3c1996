import torch

import bridge

bridge.export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4), opset=11)

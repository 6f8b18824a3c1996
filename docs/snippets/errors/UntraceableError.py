import torch

import bridge


class Peaks(torch.nn.Module):
    def forward(self, x):
        return x / float(x.numpy().max())


bridge.export(Peaks().eval(), torch.rand(10))

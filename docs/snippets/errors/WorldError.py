import torch

import bridge


class Squeezed(torch.nn.Module):
    def forward(self, x):
        return x.squeeze() * 2


bridge.export(Squeezed().eval(), examples=[(torch.rand(3, 2),), (torch.rand(1, 2),)])

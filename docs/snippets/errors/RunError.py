import torch

import bridge


class Pick(torch.nn.Module):
    def forward(self, x, index):
        return x[index]


program = bridge.export(Pick().eval(), (torch.rand(3, 2), torch.tensor([0, 2])))
program(torch.rand(3, 2), torch.tensor([0, 7]))  # eager code raises an IndexError here

import torch

import bridge

# --8<-- [start:code]


@bridge.script  # no effect in eager code: the same function runs
def clip_norm(x, limit):
    norm = x.norm()
    if norm > limit:
        x = x * (limit / norm)
    return x


class Clipped(torch.nn.Module):
    def forward(self, x):
        return clip_norm(x, 1.0)


program = bridge.export(Clipped().eval(), torch.randn(4), script="explicit")
print(program.report)
# --8<-- [end:code]

import torch

import bridge

# --8<-- [start:code]


class Chunked(torch.nn.Module):
    def forward(self, x):
        if x.shape[0] > 1000:  # false for the example and for every size that was tried
            raise ValueError("too long")
        return x.cumsum(0)


program = bridge.export(Chunked().eval(), torch.rand(8), dynamic_shapes={"x": {0: "n"}})
for assumption in program.report.assumptions:
    print(assumption)
# --8<-- [end:code]

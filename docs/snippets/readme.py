import torch

import bridge


class Sinkhorn(torch.nn.Module):
    """Scales a matrix until every row and every column sums to one."""

    def forward(self, scores):
        x, steps = scores.exp(), 0
        while (x.sum(0) - 1).abs().max() > 1e-5:  # depends on the data: an ONNX Loop
            x = x / x.sum(0, keepdim=True)
            x = x / x.sum(1, keepdim=True)
            steps += 1
        return x, steps


model, scores = Sinkhorn().eval(), torch.randn(4, 4)
bridge.export(model, scores, "sinkhorn.onnx", dynamic_shapes={"scores": {0: "n", 1: "n"}})
session = bridge.load("sinkhorn.onnx")
print(bridge.check(model, session, [(scores,), (torch.eye(1),), (torch.randn(100, 100),)]))
print(session(torch.randn(6, 6))[1], "steps")

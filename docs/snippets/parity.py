"""Parity of two sides, across a matrix, by a task metric."""

import torch
from torch import nn

import bridge

# --8<-- [start:matrix]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)).eval()
x = torch.randn(3, 16)
matrix = bridge.check_matrix(
    model, None, x, providers=["cpu"], optimizations=["none", "all"], opsets=[17, 23]
)
print(matrix.raise_for_mismatch())
# --8<-- [end:matrix]

# --8<-- [start:vary]
program = bridge.export(model, x, dynamic_shapes=({0: "batch"},))
report = bridge.check(model, program, x, vary=True)
print(", ".join(case.label for case in report.cases))
# --8<-- [end:vary]

# --8<-- [start:sides]
small = bridge.load(program, optimization="basic")
print(bridge.check(program, small).passed)
# --8<-- [end:sides]


# --8<-- [start:metric]
def accuracy(outputs):
    (logits,) = outputs.values()
    return float((logits.argmax(-1) == 0).mean())


report = bridge.check(model, program, x, metric=accuracy, max_drop=0.01)
print(report.passed, report.metric)
# --8<-- [end:metric]

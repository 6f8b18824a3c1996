# --8<-- [start:fusion]
import onnx_ir as ir
import torch

import bridge
from bridge.passes import Fusion, require_dtype

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


class SwishFusion(Fusion):
    """``x * Sigmoid(x)`` becomes ``com.microsoft.QuickGelu(x, alpha=1)``."""

    op_types = frozenset({"Mul"})  # what the last node of the pattern can be
    commute = True  # Mul(Sigmoid(x), x) too

    def pattern(self, op, x):
        return op.Mul(x, op.Sigmoid(x))

    def check(self, scope, x):
        require_dtype(x, *FLOATS)  # or the report tells why not, and where

    def fused(self, op, x):
        return op.ms("QuickGelu", x, alpha=1.0, like=x)


# --8<-- [end:fusion]


# --8<-- [start:use]
class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x):
        h = self.up(x)
        return self.down(h * torch.sigmoid(h))


program = bridge.export(Gated().eval(), torch.randn(4, 16))
optimized = bridge.optimize(program, passes=[SwishFusion(), *bridge.passes.cpu])
print(optimized.report.op_counts[1])
print(optimized.report.passes.steps["SwishFusion"].rewrites, "fused")
# --8<-- [end:use]

# --8<-- [start:wrong]
import warnings


class WrongFusion(SwishFusion):
    """Forgets that QuickGelu's alpha is 1.702 unless given."""

    def fused(self, op, x):
        return op.ms("QuickGelu", x, like=x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", bridge.OptimizationWarning)
    optimized = bridge.optimize(program, passes=[WrongFusion(), *bridge.passes.cpu])
print(list(optimized.report.rolled_back), "was rolled back")
report = bridge.bisect(program, passes=[WrongFusion(), *bridge.passes.cpu])
print(report.culprit, [node.op_type for node in report.reproducer.model.graph])
# --8<-- [end:wrong]

# --8<-- [start:node]
from bridge.passes import NodePass


class RoundedWeightsPass(NodePass):
    """Rounds the weights of products to multiples of 1/64, as some hardware stores them."""

    op_types = frozenset({"MatMul", "Gemm"})
    repeat = False

    def rewrite(self, node, op):
        weight = node.inputs[1].const_value
        if weight is None:
            return None  # not a constant: leave the node
        rounded = op.constant((weight.numpy() * 64).round() / 64)
        inputs = [node.inputs[0], rounded, *node.inputs[2:]]
        return op.node(node.op_type, *inputs, attributes_of=node, like=node.outputs[0])


rounding = bridge.Tolerance(rtol=0.0, atol=0.1)  # it is meant to change results a little
rounded = bridge.optimize(program, passes=[RoundedWeightsPass()], tolerance=rounding)
print(rounded.report.passes.steps["RoundedWeights"].rewrites, "weights rounded")
# --8<-- [end:node]

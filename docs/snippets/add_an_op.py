import numpy as np
import torch

import bridge

# --8<-- [start:operator]
library = torch.library.Library("signal", "DEF")
library.define("hypotenuse(Tensor a, Tensor b) -> Tensor")


@torch.library.impl(library, "hypotenuse", "CPU")
def compiled_elsewhere(a, b):  # stands for a kernel in C++: the tracer sees the call, not inside
    return torch.from_numpy(np.hypot(a.numpy(), b.numpy()))


class Magnitude(torch.nn.Module):
    def forward(self, spectrum):
        return torch.ops.signal.hypotenuse(spectrum[0], spectrum[1]).log1p()


model, spectrum = Magnitude().eval(), torch.randn(2, 16)
try:
    bridge.export(model, spectrum)
except bridge.UnsupportedOpError as error:
    print(error)
# --8<-- [end:operator]

# --8<-- [start:lowering]
from exporters.pytorch.registry import lowers


@lowers("signal::hypotenuse")
def hypotenuse(op, /, a, b):
    """Lower to ``Sqrt(a * a + b * b)``, which overflows earlier than eager."""
    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


program = bridge.export(model, spectrum)
print(program.report)
# --8<-- [end:lowering]

# --8<-- [start:decomposition]
from exporters.pytorch.registry import decomposes

library.define("energy(Tensor x, int dim) -> Tensor")


@torch.library.impl(library, "energy", "CPU")
def also_compiled_elsewhere(x, dim):
    return torch.from_numpy(np.square(x.numpy()).sum(dim))


@decomposes("signal::energy")
def energy(x, dim):
    """Plain torch code, which is traced in place of the call."""
    return x.square().sum(dim)


program = bridge.export(lambda x: torch.ops.signal.energy(x, dim=0), spectrum)
print(program.report)
# --8<-- [end:decomposition]

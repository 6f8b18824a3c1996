import torch

import bridge

# --8<-- [start:python]


@torch.library.custom_op("shop::discount", mutates_args=())
def discount(price: torch.Tensor, percent: float) -> torch.Tensor:
    return price * (1 - percent / 100)


class Checkout(torch.nn.Module):
    def forward(self, price):
        return torch.ops.shop.discount(price, 15.0).round()


program = bridge.export(Checkout().eval(), torch.rand(4) * 100)
print(program.report)
# --8<-- [end:python]
# --8<-- [start:own]
from exporters.pytorch.registry import lowers


@lowers("shop::discount")
def discount_node(op, /, price, percent):
    """One node of our own domain, for a runtime that has a kernel for it."""
    return op.emit("Discount", price, domain="shop", percent=percent)


program = bridge.export(Checkout().eval(), torch.rand(4) * 100, verify=False)
print(program.report.op_counts)
# --8<-- [end:own]

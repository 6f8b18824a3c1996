import torch

import bridge

# --8<-- [start:model]


class Newton(torch.nn.Module):
    """Square roots by Newton's method, as many steps as they need."""

    def forward(self, a):
        x, steps = a.clone(), 0
        while True:
            better = 0.5 * (x + a / x)
            steps += 1
            if (better - x).abs().max() < 1e-6 or steps == 50:
                break
            x = better
        return better, steps


# --8<-- [end:model]
# --8<-- [start:export]
model = Newton().eval()
program = bridge.export(model, torch.tensor([2.0, 3.0]), dynamic_shapes={"a": {0: "n"}})
print(program.report)
for a in (torch.tensor([1.0]), torch.tensor([0.01, 1e4, 7.0])):
    roots, steps = program(a)
    print(roots, steps)
# --8<-- [end:export]

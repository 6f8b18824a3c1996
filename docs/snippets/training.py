# --8<-- [start:model]
import torch
from torch import nn

import bridge


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.decoder = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, imgs, additional):
        feat_1, feat_2 = additional
        feats = self.encoder(imgs)
        return self.decoder(torch.cat([feats, feat_1], 1) + feat_2)


# --8<-- [end:model]
# --8<-- [start:train]
torch.manual_seed(0)


def batch(size, side=8):
    def images(channels):
        return torch.rand(size, channels, side, side)

    return images(3), (images(4), images(8))


model = Fusion()
traced = bridge.trace(model, example_input=batch(2))
optimizer = torch.optim.SGD(traced.parameters(), lr=0.01)
target = torch.zeros(2, 1, 8, 8)

traced.train()
for step in range(3):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(traced(*batch(2)), target)
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
# --8<-- [end:train]
# --8<-- [start:infer]
traced.eval()
with torch.no_grad():
    print(traced(*batch(5, side=12)).shape)  # on ONNX Runtime, with the trained weights
print(bridge.check(model, traced.program, batch(3)).raise_for_mismatch())
# --8<-- [end:infer]

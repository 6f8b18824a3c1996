"""Ten small models that between them use what real ones are made of."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

import bridge

__all__ = ["MODELS", "exported"]


class ResNet(nn.Module):
    """Convolutions, batch normalisation, a residual, pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 10)

    def forward(self, image):
        x = torch.relu(self.norm1(self.stem(image)))
        x = self.pool(torch.relu(self.norm2(self.conv1(x)) + x))
        return torch.softmax(self.head(x.mean((2, 3))), -1)


class MobileNet(nn.Module):
    """Depthwise and strided convolutions, hard activations, squeeze and excite."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(4, 16, 1)
        self.depth = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)

    def forward(self, image):
        x = F.hardswish(self.depth(F.relu6(self.expand(image))))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * scale)


class Encoder(nn.Module):
    """Embeddings, attention by hand with a padding mask, layer norms, GELU."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.places = nn.Embedding(32, 16)
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.value = nn.Linear(16, 16)
        self.out = nn.Linear(16, 16)
        self.norm1 = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.norm2 = nn.LayerNorm(16)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], 4, 4).transpose(1, 2)

    def forward(self, ids, mask):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = q @ k.transpose(-1, -2) / 2.0
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e4)
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Decoder(nn.Module):
    """Causal attention as one operator, RMS norm, gated feed-forward."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.packed = nn.Linear(16, 48, bias=False)
        self.out = nn.Linear(16, 16, bias=False)
        self.norm = nn.RMSNorm(16)
        self.gate = nn.Linear(16, 32)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.head = nn.Linear(16, 50)

    def forward(self, ids):
        x = self.tokens(ids)
        q, k, v = self.packed(self.norm(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
        x = x + self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class Tagger(nn.Module):
    """A bidirectional LSTM."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, ids):
        y, _ = self.lstm(self.tokens(ids))
        return F.log_softmax(self.head(torch.tanh(y)), -1)


class Recurrence(nn.Module):
    """A loop over a dynamic dim: becomes a ``Loop``."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            gate = torch.sigmoid(self.cell(torch.cat([x[:, t], h], 1)))
            h = h * 0.5 + torch.tanh(gate)
        return self.head(h)


class Router(nn.Module):
    """A branch on data: becomes an ``If``."""

    def __init__(self):
        super().__init__()
        self.warm = nn.Linear(8, 8)
        self.cold = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        if x.sum() > 0:
            h = torch.sin(self.warm(x)) + x
        else:
            h = torch.cos(self.cold(x)) * 2 + x
        return self.head(h)


class UNet(nn.Module):
    """Down, up by transposed convolution and by resizing, and across."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(2, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 12, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.leave = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x):
        a = F.leaky_relu(self.enter(x), 0.1)
        b = F.elu(self.down(a))
        wide = F.interpolate(b[:, :6], scale_factor=2, mode="bilinear", align_corners=False)
        return self.leave(torch.cat([a, self.up(b) + wide], 1))


class Half(nn.Module):
    """A network in float16."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 8)
        self.half()

    def forward(self, x):
        y = self.norm(torch.relu(self.first(x)))
        return self.second(y) * 3 + 1


class Detector(nn.Module):
    """Indexing: slices, top-k, gather, boxes, padding, cumulative sums."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(12, 6)
        self.box = nn.Linear(12, 4)

    def forward(self, features):
        logits = self.score(features)
        best, index = torch.topk(logits.amax(-1), 5, dim=1)
        box = self.box(features)
        corners = torch.cat([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1)
        kept = torch.gather(corners, 1, index[..., None].expand(-1, -1, 4))
        kept = torch.clamp(F.pad(kept, (1, 0, 0, 0)), -1, 1).cumsum(1)
        return torch.sigmoid(best), kept


def _statistics(model):
    """Give batch normalisations statistics that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model


def _ids(count):
    return torch.randint(0, count, (2, 7))


MODELS = {
    "resnet": (ResNet, lambda: (torch.randn(2, 3, 8, 8),), {"image": {0: "batch"}}),
    "mobilenet": (MobileNet, lambda: (torch.randn(2, 4, 8, 8),), {"image": {0: "batch"}}),
    "encoder": (
        Encoder,
        lambda: (_ids(50), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])),
        {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
    ),
    "decoder": (Decoder, lambda: (_ids(50),), {"ids": {0: "batch", 1: "length"}}),
    "tagger": (Tagger, lambda: (_ids(30),), {"ids": {0: "batch", 1: "length"}}),
    "recurrence": (Recurrence, lambda: (torch.randn(2, 6, 4),), {"x": {0: "batch", 1: "length"}}),
    "router": (Router, lambda: (torch.rand(3, 8),), {"x": {0: "batch"}}),
    "unet": (UNet, lambda: (torch.randn(1, 2, 8, 8),), {"x": {0: "batch"}}),
    "half": (Half, lambda: (torch.randn(3, 16).half(),), {"x": {0: "batch"}}),
    "detector": (Detector, lambda: (torch.randn(2, 9, 12),), {"features": {0: "batch"}}),
}


@functools.cache
def exported(name, opset=None):
    """A model, its inputs and its program."""
    make, inputs, dynamic = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    model = _statistics(make().eval())
    args = inputs()
    program = bridge.export(model, args, dynamic_shapes=dynamic, opset=opset)
    return model, args, program

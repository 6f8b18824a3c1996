"""Small nets, trained in seconds on data that ships with scikit-learn or is made up."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import bridge


@dataclasses.dataclass
class Trained:
    """A trained net as a program, with batches and its metric."""

    model: nn.Module
    program: Any
    batches: list[Any]
    metric: Any

    @property
    def accuracy(self) -> float:
        return self.metric(self.program.session())


def train(model: nn.Module, inputs: Any, targets: Any, loss: Any, steps: int, rate: float = 3e-3):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        pick = torch.randint(0, len(inputs), (64,), generator=generator)
        optimizer.zero_grad()
        loss(model(inputs[pick]), targets[pick]).backward()
        optimizer.step()
    return model.eval()


def classified(model: nn.Module, inputs: Any, targets: Any, batch: int = 64) -> Trained:
    """A classifier as a program; the second half of the data is for the metric."""
    half = len(inputs) // 2
    program = bridge.export(model, (inputs[:8],), dynamic_shapes=({0: "batch"},), verify=False)

    def metric(run: Any) -> float:
        with torch.no_grad():
            found = run(inputs[half:]).argmax(-1)
        return float((found == targets[half:]).float().mean())

    batches = list(inputs[:half].split(batch))[:8]
    return Trained(model, program, batches, metric)


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return images[order], torch.from_numpy(data.target)[order]


class SmallCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


class Inverted(nn.Module):
    """MobileNet's block: expand, depthwise, squeeze and excite, project."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide), nn.Hardswish(),
        )  # fmt: skip
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.ReLU(), nn.Conv2d(8, wide, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x):
        h = self.depthwise(self.expand(x))
        return x + self.project(h * self.gate(h))


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU6())
        self.blocks = nn.Sequential(Inverted(24, 72), nn.MaxPool2d(2), Inverted(24, 56))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


class Classifier(nn.Module):
    """A text transformer that counts which token is most frequent."""

    def __init__(self, tokens: int = 12, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 128, dropout=0.0, batch_first=True, activation="gelu", norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)

    def forward(self, ids):
        return self.head(self.norm(self.encoder(self.embed(ids))).mean(1))


class Tagger(nn.Module):
    """An LSTM that marks tokens which came before."""

    def __init__(self, tokens: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 32)
        self.lstm = nn.LSTM(32, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 2)

    def forward(self, ids):
        return self.head(self.lstm(self.embed(ids))[0])


class Detector(nn.Module):
    """Says in which cell of a grid the bright blob is, and where within it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 48, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(48, 48, 3, 2, 1), nn.LeakyReLU(0.1),
        )  # fmt: skip
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(48, 32, 3, padding=1), nn.ReLU()
        )
        self.cells = nn.Conv2d(64, 1, 1)
        self.boxes = nn.Conv2d(64, 2, 1)
        self.lateral = nn.Conv2d(1, 32, 3, 2, 1)

    def forward(self, x):
        h = torch.cat([self.up(self.body(x)), F.relu(self.lateral(x))], 1)
        return self.cells(h).flatten(1), torch.sigmoid(self.boxes(h)).flatten(2)


@functools.cache
def trained(name: str) -> Trained:
    """One of the nets, trained on the first half of its data."""
    torch.manual_seed(0)
    cross = F.cross_entropy
    if name in ("cnn", "mobilenet"):
        images, labels = digits()
        half = len(images) // 2
        model = SmallCnn() if name == "cnn" else MobileNet()
        train(model, images[:half], labels[:half], cross, 150 if name == "cnn" else 250)
        return classified(model, images, labels)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 12, (2000, 20), generator=generator)
    if name == "transformer":
        ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.35, ids[:, :1], ids)
        labels = ids[:, 0]
        model = train(Classifier(), ids[:1000], labels[:1000], cross, 120)
        return classified(model, ids, labels)
    if name == "tagger":
        seen = torch.stack([(ids[:, :i] == ids[:, i : i + 1]).any(1) for i in range(20)], 1).long()
        model = train(Tagger(), ids[:1000], seen[:1000], lambda y, t: cross(y.mT, t), 250, 5e-3)
        return classified(model, ids, seen)
    return detector(generator)


def detector(generator: torch.Generator) -> Trained:
    centers = torch.rand(1200, 2, generator=generator) * 13 + 1
    grid = torch.arange(16.0) + 0.5
    squares = (grid - centers[:, :1]) ** 2, (grid - centers[:, 1:]) ** 2
    images = torch.exp(-(squares[0][:, :, None] + squares[1][:, None, :]) / 3)[:, None]
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    cells = (centers[:, 0] // 2 * 8 + centers[:, 1] // 2).long()
    targets = torch.cat([cells[:, None].float(), centers % 2 / 2], 1)

    def loss(found, target):
        at = target[:, 0].long()
        box = found[1].gather(2, at[:, None, None].expand(-1, 2, 1))[..., 0]
        return F.cross_entropy(found[0], at) + F.mse_loss(box, target[:, 1:])

    model = train(Detector(), images[:600], targets[:600], loss, 200)
    program = bridge.export(model, (images[:8],), dynamic_shapes=({0: "batch"},), verify=False)

    def metric(run: Any) -> float:
        """The share of blobs that are found to half a pixel."""
        with torch.no_grad():
            found, boxes = run(images[600:])
        at = found.argmax(1)
        box = boxes.gather(2, at[:, None, None].expand(-1, 2, 1))[..., 0]
        place = torch.stack([at // 8, at % 8], 1) * 2 + box * 2
        return float(((place - centers[600:]).abs().amax(1) < 0.5).float().mean())

    return Trained(model, program, list(images[:512].split(64)), metric)


class Breaking(nn.Module):
    """A net that breaks naive quantization and computes what ``SmallCnn`` does.

    Channels differ by factors up to 1000 around the depthwise layer, so that most of them vanish
    within one step of the largest.
    """

    def __init__(self, base: SmallCnn) -> None:
        super().__init__()
        conv1, bn1, relu, conv2, bn2, _, pool, *rest = base.net
        torch.manual_seed(3)
        s = 10.0 ** torch.linspace(-1.5, 1.5, 32)[torch.randperm(32)]
        first = torch.nn.utils.fuse_conv_bn_eval(conv1, bn1)
        first.weight.data *= s[:, None, None, None]
        first.bias.data *= s
        self.first, self.relu = first, relu
        self.depthwise = nn.Conv2d(32, 32, 1, groups=32)
        self.depthwise.weight.data[:] = 1
        self.depthwise.bias.data[:] = 0
        second = torch.nn.utils.fuse_conv_bn_eval(conv2, bn2)
        second.weight.data /= s[:, None, None]
        self.second = second
        self.rest = nn.Sequential(relu, pool, *rest)

    def forward(self, x):
        h = self.depthwise(self.relu(self.first(x)))
        return self.rest(self.second(h))

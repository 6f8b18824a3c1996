"""Full architectures with seeded random weights, and inputs for them.

Each entry gives a model, an example, the dims that eager code lets vary, and a function that makes
inputs of other sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests import torchvision_shim

__all__ = ["ZOO", "Entry"]

Sizes = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        make: Makes the model.
        inputs: Arguments for given sizes.
        dynamic: Which dims vary, as ``dynamic_shapes``; None if ``examples`` are needed.
        example: The sizes to export at.
        others: Other sizes to run at, batch 1 among them.
        rtol: Tolerance relative to the largest output.
        second: The sizes of a second example, where the dims depend on each other.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    dynamic: Any
    example: Sizes
    others: tuple[Sizes, ...]
    rtol: float = 1e-4
    second: Sizes | None = None


def image(batch: int, height: int = 64, width: int = 64) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(batch * 7 + height)
    return (torch.randn(batch, 3, height, width, generator=generator),), {}


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(
        0, 99, (batch, length), generator=torch.Generator().manual_seed(batch + length)
    )


def mask(batch: int, length: int) -> torch.Tensor:
    values = torch.ones(batch, length, dtype=torch.long)
    values[0, -1:] = 0
    return values


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision_shim.install()
        import torchvision

        torch.manual_seed(0)
        return torchvision.models.get_model(name, weights=None, **options).eval()

    return make


def segmentation() -> nn.Module:
    torchvision_shim.install()
    import torchvision

    class OnlyOut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torchvision.models.segmentation.deeplabv3_resnet50(
                weights=None, weights_backbone=None
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)["out"]

    return OnlyOut().eval()


IMAGE_DIMS = {"x": {0: "batch", 2: "height", 3: "width"}}
BATCH = {"x": {0: "batch"}}
VARYING = (
    {"batch": 1, "height": 64, "width": 64},
    {"batch": 3, "height": 96, "width": 64},
    {"batch": 2, "height": 128, "width": 160},
)
BATCHES = ({"batch": 1}, {"batch": 3}, {"batch": 5})


def small(config: Any, **changes: Any) -> Any:
    """A transformers configuration of a few small layers."""
    values = {
        "vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 128, **changes,
    }  # fmt: skip
    return config(**values)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(small(BertConfig)).eval()


def text(batch: int, length: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (), {"input_ids": tokens(batch, length), "attention_mask": mask(batch, length)}


TEXT_DIMS = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
TEXTS = ({"batch": 1, "length": 9}, {"batch": 3, "length": 1}, {"batch": 4, "length": 17})


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    config.use_cache = False
    return GPT2LMHeadModel(config).eval()


class WithCache(nn.Module):
    """A decoder step: tokens and the cache go in, logits and the longer cache come out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, past_key_values: Any) -> Any:
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=True,
        )
        return result.logits, result.past_key_values


def gpt2_with_cache() -> nn.Module:
    return WithCache(gpt2()).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(small(LlamaConfig, num_key_value_heads=2)).eval()


def llama_with_cache() -> nn.Module:
    return WithCache(llama()).eval()


def cached(
    batch: int, length: int, past: int, *, heads: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(past)
    cache = DynamicCache()
    for layer in range(2):
        state = [torch.randn(batch, heads, past, 16, generator=generator) for _ in range(2)]
        cache.update(state[0], state[1], layer)
    return (), {
        "input_ids": tokens(batch, length),
        "attention_mask": torch.ones(batch, past + length, dtype=torch.long),
        "past_key_values": cache,
    }


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False
    )
    return T5ForConditionalGeneration(config).eval()


def sequence_pair(batch: int, length: int, target: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (), {
        "input_ids": tokens(batch, length),
        "attention_mask": mask(batch, length),
        "decoder_input_ids": tokens(batch, target),
    }


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=99, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=20,
        max_source_positions=50, max_target_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def speech(batch: int, target: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(batch)
    return (), {
        "input_features": torch.randn(batch, 20, 100, generator=generator),
        "decoder_input_ids": tokens(batch, target),
    }


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    text_config = small(CLIPTextConfig, eos_token_id=98, bos_token_id=1, projection_dim=32)
    vision_config = CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        image_size=32, patch_size=8, projection_dim=32,
    )  # fmt: skip
    config = CLIPConfig(
        text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), projection_dim=32
    )
    return CLIPModel(config).eval()


def picture_and_text(
    batch: int, texts: int, length: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(batch)
    return (), {
        "input_ids": tokens(texts, length),
        "pixel_values": torch.randn(batch, 3, 32, 32, generator=generator),
        "attention_mask": mask(texts, length),
    }


class UNet(nn.Module):
    """The classic segmentation net, with skip connections and bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)

        def block(inside: int, out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
                nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            )  # fmt: skip

        self.down = nn.ModuleList([block(3, 8), block(8, 16), block(16, 32)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)]
        )
        self.join = nn.ModuleList([block(32, 16), block(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            skip = skips.pop()
            x = up(x)
            gap = [skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]]
            x = nn.functional.pad(
                x, [gap[1] // 2, gap[1] - gap[1] // 2, gap[0] // 2, gap[0] - gap[0] // 2]
            )
            x = join(torch.cat([skip, x], 1))
        return nn.functional.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")


class Seq2Seq(nn.Module):
    """An LSTM encoder-decoder with dot-product attention over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(99, 32)
        self.encoder = nn.LSTM(32, 24, batch_first=True, bidirectional=True, num_layers=2)
        self.decoder = nn.LSTM(32, 48, batch_first=True)
        self.query = nn.Linear(48, 48)
        self.out = nn.Linear(96, 99)

    def forward(self, source: Any, lengths: Any, target: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(source), lengths, batch_first=True, enforce_sorted=False
        )
        states, (h, c) = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=source.shape[1]
        )
        start = (
            torch.cat([h[-2], h[-1]], -1).unsqueeze(0),
            torch.cat([c[-2], c[-1]], -1).unsqueeze(0),
        )
        decoded, _ = self.decoder(self.embed(target), start)
        scores = self.query(decoded) @ memory.transpose(1, 2)
        places = torch.arange(source.shape[1], device=source.device)
        valid = places[None] < lengths.to(source.device)[:, None]
        weights = scores.masked_fill(~valid[:, None], float("-inf")).softmax(-1)
        return self.out(torch.cat([decoded, weights @ memory], -1)), weights


def translation(batch: int, length: int, target: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    lengths = torch.arange(length, length - batch, -1).clamp(min=1).flip(0)
    return (tokens(batch, length), lengths, tokens(batch, target)), {}


class DCGAN(nn.Module):
    """The generator: transposed convolutions from a latent vector to an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        widths = [32, 64, 32, 16]
        for i, (inside, out) in enumerate(itertools.pairwise(widths)):
            layers += [
                nn.ConvTranspose2d(
                    inside, out, 4, 1 if i == 0 else 2, 0 if i == 0 else 1, bias=False
                ),
                nn.BatchNorm2d(out),
                nn.ReLU(True),
            ]
        self.main = nn.Sequential(
            *layers, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh()
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gated activations and skip connections."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.start = nn.Conv1d(1, 16, 1)
        self.dilations = [1, 2, 4, 8, 1, 2, 4, 8]
        self.filters = nn.ModuleList(nn.Conv1d(16, 16, 2, dilation=d) for d in self.dilations)
        self.gates = nn.ModuleList(nn.Conv1d(16, 16, 2, dilation=d) for d in self.dilations)
        self.residuals = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in self.dilations)
        self.skips = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in self.dilations)
        self.end = nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        total = 0
        for i, dilation in enumerate(self.dilations):
            padded = nn.functional.pad(x, (dilation, 0))
            gated = torch.tanh(self.filters[i](padded)) * torch.sigmoid(self.gates[i](padded))
            total = total + self.skips[i](gated)
            x = x + self.residuals[i](gated)
        return self.end(torch.relu(total)).log_softmax(1)


def noise(*shape: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0])),), {}


CACHE_SIZES = (
    {"batch": 1, "length": 1, "past": 4},
    {"batch": 3, "length": 1, "past": 9},
    {"batch": 2, "length": 3, "past": 5},
)

ZOO: dict[str, Entry] = {
    "resnet50": Entry(
        vision("resnet50"), image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, VARYING,
    ),
    "mobilenet_v3_large": Entry(
        vision("mobilenet_v3_large"), image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, VARYING,
    ),
    "efficientnet_b0": Entry(
        vision("efficientnet_b0"), image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, VARYING,
    ),
    "convnext_tiny": Entry(
        vision("convnext_tiny"), image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, VARYING,
    ),
    "swin_t": Entry(
        vision("swin_t"), image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, VARYING, rtol=1e-3,
    ),
    "vit_b_16": Entry(vision("vit_b_16", image_size=64), image, BATCH, {"batch": 2}, BATCHES),
    "deeplabv3_resnet50": Entry(
        segmentation, image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, VARYING,
    ),
    "bert": Entry(bert, text, TEXT_DIMS, {"batch": 2, "length": 12}, TEXTS),
    "gpt2": Entry(gpt2, text, TEXT_DIMS, {"batch": 2, "length": 12}, TEXTS),
    "gpt2_with_cache": Entry(
        gpt2_with_cache, lambda **s: cached(**s, heads=4), None, {"batch": 2, "length": 2, "past": 6},
        CACHE_SIZES, second={"batch": 4, "length": 5, "past": 13},
    ),
    "llama": Entry(llama, text, TEXT_DIMS, {"batch": 2, "length": 12}, TEXTS),
    "llama_with_cache": Entry(
        llama_with_cache, lambda **s: cached(**s, heads=2), None, {"batch": 2, "length": 2, "past": 6},
        CACHE_SIZES, second={"batch": 4, "length": 5, "past": 13},
    ),
    "t5": Entry(
        t5, sequence_pair,
        {**TEXT_DIMS, "decoder_input_ids": {0: "batch", 1: "target"}},
        {"batch": 2, "length": 12, "target": 7},
        ({"batch": 1, "length": 9, "target": 4}, {"batch": 3, "length": 1, "target": 1},
         {"batch": 4, "length": 17, "target": 11}),
    ),
    "whisper": Entry(
        whisper, speech,
        {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target"}},
        {"batch": 2, "target": 7},
        ({"batch": 1, "target": 4}, {"batch": 3, "target": 1}, {"batch": 4, "target": 11}),
    ),
    "clip": Entry(
        clip, picture_and_text,
        {"input_ids": {0: "texts", 1: "length"}, "pixel_values": {0: "batch"},
         "attention_mask": {0: "texts", 1: "length"}},
        {"batch": 2, "texts": 3, "length": 12},
        ({"batch": 1, "texts": 1, "length": 9}, {"batch": 3, "texts": 2, "length": 5},
         {"batch": 4, "texts": 5, "length": 17}),
    ),
    "unet": Entry(
        UNet, image, IMAGE_DIMS,
        {"batch": 2, "height": 64, "width": 64}, (*VARYING[:2], {"batch": 2, "height": 57, "width": 45}),
    ),
    "seq2seq": Entry(
        Seq2Seq, translation,
        {"source": {0: "batch", 1: "length"}, "lengths": {0: "batch"}, "target": {0: "batch", 1: "target"}},
        {"batch": 2, "length": 8, "target": 6},
        ({"batch": 1, "length": 5, "target": 4}, {"batch": 3, "length": 7, "target": 1},
         {"batch": 4, "length": 11, "target": 9}),
    ),
    "dcgan": Entry(DCGAN, lambda batch: noise(batch, 32, 1, 1), {"z": {0: "batch"}}, {"batch": 2}, BATCHES),
    "wavenet": Entry(
        WaveNet, lambda batch, length: noise(batch, 1, length), {"x": {0: "batch", 2: "length"}},
        {"batch": 2, "length": 40},
        ({"batch": 1, "length": 9}, {"batch": 3, "length": 1}, {"batch": 2, "length": 64}),
    ),
}  # fmt: skip

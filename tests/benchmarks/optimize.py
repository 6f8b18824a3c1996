"""Optimised models beside the incumbent's exports, ``torch.compile`` and eager, on the CPU.

Each model runs in processes of its own for each number of threads. In each round every contestant
runs for a moment, one after the other, and another one begins; a ratio is the median over the
rounds. ``--keep FILE`` has a line of JSON for each model that is done, and a later run goes on
from there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import torchvision_shim

ROUNDS = 22
MOMENT = 0.05  # seconds a contestant runs in each round
THREADS = (1, 4)
# Operators that do the arithmetic of a model: what is left to optimise is the rest.
ARITHMETIC = ("Attention", "Conv", "FusedConv", "FusedMatMul", "Gemm", "LSTM", "MatMul",
              "MultiHeadAttention")  # fmt: skip
POST_EXPORT = ("ort.transformers", "onnxslim")
CONTESTANTS = ("bridge", "torch.onnx", "ort.transformers", "onnxslim", "torch.compile", "eager")

Built = tuple[Any, tuple[Any, ...]]


def vision(name: str) -> Built:
    import torch
    import torchvision

    return torchvision.models.get_model(name, weights=None), (torch.randn(1, 3, 224, 224),)


def bert_base() -> Built:
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(), add_pooling_layer=False)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.bert(input_ids, attention_mask).last_hidden_state

    ids = torch.randint(0, 1000, (1, 128))
    return Encoder(), (ids, torch.ones_like(ids))


def gpt2_prefill() -> Built:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = GPT2LMHeadModel(GPT2Config(use_cache=False))

        def forward(self, input_ids: Any) -> Any:
            return self.gpt2(input_ids).logits

    return Decoder(), (torch.randint(0, 1000, (1, 512)),)


def whisper_encoder() -> Built:
    """The encoder of whisper-base on 30 seconds of sound."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8,
                                   encoder_ffn_dim=2048)  # fmt: skip
            self.encoder = WhisperEncoder(config)

        def forward(self, features: Any) -> Any:
            return self.encoder(features).last_hidden_state

    return Encoder(), (torch.randn(1, 80, 3000),)


def unet_block() -> Built:
    """The second down block of Stable Diffusion 1.5, on latents of a 512 x 512 image."""
    import torch
    from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = CrossAttnDownBlock2D(
                in_channels=320, out_channels=640, temb_channels=1280, num_layers=2,
                num_attention_heads=8, cross_attention_dim=768,
            )  # fmt: skip

        def forward(self, x: Any, embedding: Any, text: Any) -> Any:
            return self.block(x, embedding, encoder_hidden_states=text)[0]

    inputs = torch.randn(1, 320, 32, 32), torch.randn(1, 1280), torch.randn(1, 77, 768)
    return Block(), inputs


def lstm_tagger() -> Built:
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10000, 128)
            self.lstm = nn.LSTM(128, 256, num_layers=2, bidirectional=True, batch_first=True)
            self.out = nn.Linear(512, 17)

        def forward(self, tokens: Any) -> Any:
            return self.out(self.lstm(self.embed(tokens))[0]).log_softmax(-1)

    return Tagger(), (torch.randint(0, 10000, (8, 64)),)


MODELS: dict[str, tuple[Callable[[], Built], str]] = {
    # By name: how to build it, and what onnxruntime.transformers calls its kind.
    "resnet50": (lambda: vision("resnet50"), "bert"),
    "mobilenet_v3_large": (lambda: vision("mobilenet_v3_large"), "bert"),
    "convnext_tiny": (lambda: vision("convnext_tiny"), "bert"),
    "vit_b_16": (lambda: vision("vit_b_16"), "vit"),
    "swin_t": (lambda: vision("swin_t"), "swin"),
    "bert_base": (bert_base, "bert"),
    "gpt2_prefill_512": (gpt2_prefill, "gpt2"),
    "whisper_base_encoder": (whisper_encoder, "bart"),
    "unet_block": (unet_block, "unet"),
    "lstm_tagger": (lstm_tagger, "bert"),
}


def seeded(name: str) -> Built:
    """The model with random weights; fresh biases and scales are 0 and 1, which folds away."""
    import torch

    torchvision_shim.install()  # transformers imports torchvision, too
    torch.manual_seed(0)
    model, args = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.02 * torch.randn_like(parameter)
    return model.eval(), args


def optimised(model: Any, args: tuple[Any, ...], path: str) -> None:
    import bridge

    program = bridge.export(model, args, verify=False)
    bridge.optimize(program, path, target="cpu", verify=False)


def incumbent(model: Any, args: tuple[Any, ...], path: str) -> None:
    import torch

    torch.onnx.export(model, args, path, dynamo=True, external_data=False, verbose=False)


def after_ort_transformers(source: str, path: str, kind: str) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(source, model_type=kind).save_model_to_file(path)


def after_onnxslim(source: str, path: str, _: str) -> None:
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), path)


def write_models(name: str, folder: str, wanted: tuple[str, ...]) -> None:
    """A file for each contestant that runs on ONNX Runtime, or one that says what went wrong."""
    model, args = seeded(name)
    kind = MODELS[name][1]
    base = os.path.join(folder, "torch.onnx.onnx")
    incumbent(model, args, base)
    for contestant in wanted:
        path = os.path.join(folder, f"{contestant}.onnx")
        try:
            if contestant == "bridge":
                optimised(model, args, path)
            elif contestant == "onnxslim":
                after_onnxslim(base, path, kind)
            elif contestant == "ort.transformers":
                after_ort_transformers(base, path, kind)
        except Exception as failure:
            Path(folder, f"{contestant}.txt").write_text(told(failure))


def told(failure: Exception) -> str:
    """The start of an error: a contestant that fails is a row of the table."""
    return f"{type(failure).__name__}: {failure}"[:200]


def on_runtime(path: str, args: tuple[Any, ...], threads: int) -> Callable[[], Any]:
    """What runs a file on ONNX Runtime once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), args, strict=True)}
    return lambda: session.run(None, feed)[0]


def callables(
    name: str, threads: int, folder: str, wanted: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What runs each contestant once, and what went wrong with those that cannot run."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    model, args = seeded(name)
    with torch.no_grad():
        expected = model(*args).numpy()

    def in_torch(called: Any) -> Any:
        with torch.inference_mode():
            return called(*args).numpy()

    runs: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for contestant in wanted:
        failed = Path(folder, f"{contestant}.txt")
        if failed.exists():
            wrong[contestant] = failed.read_text()
            continue
        try:
            if contestant in ("eager", "torch.compile"):
                called = model if contestant == "eager" else torch.compile(model)
                run: Any = functools.partial(in_torch, called)
            else:
                run = on_runtime(os.path.join(folder, f"{contestant}.onnx"), args, threads)
            error = np.abs(run() - expected).max() / np.abs(expected).max()
            if error > 1e-3:
                wrong[contestant] = f"relative error {error:.1e}"
            runs[contestant] = run
        except Exception as failure:
            wrong[contestant] = told(failure)
    return runs, wrong


def arithmetic_share(path: str, threads: int) -> float:
    """The part of a model's time that products, convolutions and attentions take."""
    import bridge

    times = bridge.load(path, threads=threads).profile().by_operator()
    return sum(times.get(op, 0.0) for op in ARITHMETIC) / sum(times.values())


def one(name: str, threads: int, folder: str, wanted: tuple[str, ...], rounds: int) -> None:
    """Run in a process of its own; print milliseconds by round as JSON."""
    warnings.simplefilter("ignore")
    runs, wrong = callables(name, threads, folder, wanted)
    counts = {}
    for contestant, run in runs.items():
        for _ in range(3):
            started = time.perf_counter()
            run()
        counts[contestant] = max(1, math.ceil(MOMENT / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {c: [] for c in runs}
    for first in range(rounds):
        for i in range(len(runs)):
            contestant = list(runs)[(first + i) % len(runs)]
            started = time.perf_counter()
            for _ in range(counts[contestant]):
                runs[contestant]()
            took = time.perf_counter() - started
            times[contestant].append(took / counts[contestant] * 1e3)
    path = os.path.join(folder, "bridge.onnx")
    share = arithmetic_share(path, threads) if "bridge" in runs else None
    figures = {"name": name, "threads": threads, "times": times, "wrong": wrong, "share": share}
    print(json.dumps(figures))


def measure(name: str, threads: int, wanted: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Figures of two processes: where a process puts weights is worth a few percent.

    The contestants start in one order in the first, and in the other in the second. Exporters run
    in a process of their own.
    """
    module = [sys.executable, "-m", "tests.benchmarks.optimize"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for order in ((), wanted, wanted[::-1]):
            what = ["--one", name, str(threads)] if order else ["--write", name]
            command = [*module, *what, "--folder", folder, "--rounds", str(-(-rounds // 2))]
            command += ["--contestants", *(order or wanted)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found += [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"name"')]
    first, second = found
    for contestant, times in second["times"].items():
        first["times"].setdefault(contestant, []).extend(times)
    return first


def kept(keep: Path | None) -> dict[tuple[str, int], dict[str, Any]]:
    """What earlier runs measured, by model and threads."""
    if keep is None or not keep.exists():
        return {}
    figures = map(json.loads, keep.read_text().splitlines())
    return {(f["name"], f["threads"]): f for f in figures}


def compared(figures: dict[str, Any]) -> dict[str, float]:
    """How many times longer the others take: the median over the rounds."""
    times = figures["times"]
    return {
        contestant: statistics.median(b / a for b, a in zip(taken, times["bridge"], strict=True))
        for contestant, taken in times.items()
        if contestant != "bridge"
    }


def table(rows: list[dict[str, Any]], others: list[str]) -> str:
    """Milliseconds of ours, how many times longer the others take, and the geometric means."""
    lines = [
        f"| model | threads | bridge ms | {' | '.join(others)} | best of all | arithmetic |",
        f"|---|---|---|{'---|' * (len(others) + 2)}",
    ]
    ratios = [compared(figures) for figures in rows]
    for figures, ratio in zip(rows, ratios, strict=True):
        cells = [f"{ratio[c]:.2f}" if c in ratio else "–" for c in others]
        mine = statistics.median(figures["times"]["bridge"])
        lines.append(
            f"| {figures['name']} | {figures['threads']} | {mine:.2f} | {' | '.join(cells)} | "
            f"{min(ratio.values()):.2f} | {figures['share']:.0%} |"
        )
    for threads in sorted({figures["threads"] for figures in rows}):
        chosen = [r for f, r in zip(rows, ratios, strict=True) if f["threads"] == threads]
        cells = [_mean([r[c] for r in chosen if c in r]) for c in others]
        best = _mean([min(r.values()) for r in chosen])
        lines.append(f"| geometric mean | {threads} | | {' | '.join(cells)} | {best} | |")
        after = [[r[c] for c in POST_EXPORT if c in r] for r in chosen]
        mean = _mean([min(each) for each in after if each])
        lines.append(f"\nBest of {' and '.join(POST_EXPORT)}, {threads} threads: {mean}.\n")
    # The sentences go below the table.
    lines.sort(key=lambda line: line.startswith("\n"))
    notes = [
        f"- {f['name']}, {f['threads']} threads, {c}: {why}"
        for f in rows
        for c, why in f["wrong"].items()
    ]
    return "\n".join(lines + notes)


def _mean(ratios: list[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.3f}" if ratios else "–"


def main(
    names: tuple[str, ...] = tuple(MODELS),
    threads: tuple[int, ...] = THREADS,
    wanted: tuple[str, ...] = CONTESTANTS,
    rounds: int = ROUNDS,
    keep: Path | None = None,
) -> None:
    """Measure what was not kept from an earlier run, and print a table of it all."""
    done = kept(keep)
    for count in threads:
        for name in names:
            if (name, count) in done:
                continue
            done[name, count] = measure(name, count, wanted, rounds)
            print(f"{name}, {count} threads: {compared(done[name, count])}", file=sys.stderr)
            if keep is not None:
                with keep.open("a") as lines:
                    lines.write(json.dumps(done[name, count]) + "\n")
    rows = [done[name, count] for count in threads for name in names]
    print(table(rows, [c for c in wanted if c != "bridge"]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--write")
    parser.add_argument("--folder")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    chosen = tuple(options.contestants)
    if options.write:
        warnings.simplefilter("ignore")
        write_models(options.write, options.folder, chosen)
    elif options.one:
        name, count = options.one
        one(name, int(count), options.folder, chosen, options.rounds)
    else:
        main(
            tuple(options.names) or tuple(MODELS), tuple(options.threads), chosen,
            options.rounds, options.keep,
        )  # fmt: skip

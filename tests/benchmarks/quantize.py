"""Quantized models beside ONNX Runtime's own tools and float: latency, output SNR, time to quantize.

One thread, random weights, inputs that calibration has not seen. All sessions of a model run in turn
in one process. The incumbent is used as its documentation advises for CPUs with VNNI: its
preprocessing, uint8 activations and int8 weights per channel; MatMulNBits with accuracy level 4.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests import torchvision_shim
from tests.benchmarks.export import PeakMemory

MODELS = ("resnet50", "mobilenet_v3_large", "vit_b_16", "bert_base", "gpt2", "lstm")
RECIPES = ("int8-static", "int8-dynamic", "int4-weights")
IMAGES = MODELS[:3]
CALIBRATED, COMPARED = 8, 4
ROUNDS = 25


def build(name: str) -> tuple[Any, tuple[Any, ...], Any]:
    """A full-size model with an example and its dynamic dims."""
    import torch

    torch.manual_seed(0)
    torchvision_shim.install()
    if name in IMAGES:
        import torchvision

        model = getattr(torchvision.models, name)(weights=None)
        if name == "vit_b_16":  # torchvision starts the head with zeros
            torch.nn.init.normal_(model.heads.head.weight, std=0.02)
        return model.eval(), (torch.randn(1, 3, 224, 224),), ({0: "batch"},)
    if name == "lstm":
        return _Tagger().eval(), (torch.randint(0, 10000, (1, 64)),), ({0: "batch", 1: "length"},)
    ids = torch.randint(0, 1000, (1, 128))
    model = _text(name)
    return model.eval(), (ids, torch.ones_like(ids)), ({0: "batch", 1: "length"},) * 2


def _text(name: str) -> Any:
    import torch
    import transformers

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel(transformers.BertConfig())

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.bert(input_ids, attention_mask).last_hidden_state

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config())

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.gpt2(input_ids, attention_mask=attention_mask, use_cache=False).logits

    return Encoder() if name == "bert_base" else Decoder()


def _Tagger() -> Any:
    import torch

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(10000, 512)
            self.lstm = torch.nn.LSTM(512, 512, 2, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(1024, 50)

        def forward(self, ids: Any) -> Any:
            return self.head(self.lstm(self.embed(ids))[0])

    return Tagger()


def feeds(name: str, names: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    if name in IMAGES:
        return [
            {names[0]: rng.standard_normal((1, 3, 224, 224)).astype(np.float32)}
            for _ in range(count)
        ]
    if name == "lstm":
        return [{names[0]: rng.integers(0, 10000, (1, 64))} for _ in range(count)]
    ones = np.ones((1, 128), np.int64)
    return [{names[0]: rng.integers(0, 1000, (1, 128)), names[1]: ones} for _ in range(count)]


def ours(source: Path, target: Path, recipe: str, batches: list[Any]) -> None:
    import bridge

    made = bridge.quantize(source, recipe, calibration=batches, gate=False)
    made.save(target)


def incumbent(source: Path, target: Path, recipe: str, batches: list[Any]) -> None:
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> Any:
            return next(self.rest, None)

    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    if recipe == "int4-weights":
        quantizer = nbits.MatMulNBitsQuantizer(onnx.load(prepared), accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), False)
        return
    if recipe == "int8-dynamic":
        q.quantize_dynamic(prepared, target, per_channel=True)
        return
    q.quantize_static(
        prepared, target, Reader(), per_channel=True, activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )  # fmt: skip


TOOLS = {"incumbent": incumbent, "bridge": ours}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one(name: str, recipes: tuple[str, ...]) -> None:
    """Quantize one model by every tool and recipe, run all in turn, print figures as JSON."""
    warnings.simplefilter("ignore")
    import onnxruntime
    from onnxruntime import quantization  # noqa: F401 - imports count on no side
    from onnxruntime.quantization import matmul_nbits_quantizer, shape_inference  # noqa: F401

    import bridge

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = folder / "float.onnx"
        model, args, dynamic = build(name)
        # Opset 20: the incumbent's dynamic quantization makes invalid graphs of opset 23's Attention.
        bridge.export(model, args, source, dynamic_shapes=dynamic, verify=False, opset=20)
        del model
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        batches = feeds(name, names, CALIBRATED, 1)
        paths = {"float": source}
        optimized = folder / "optimized.onnx"
        bridge.optimize(source, optimized, verify=False)
        paths["float, bridge.optimize"] = optimized
        for recipe in recipes:
            for tool, function in TOOLS.items():
                target = folder / f"{recipe}.{tool}.onnx"
                gc.collect()
                gc.freeze()  # what torch and the libraries hold is not searched again and again
                started = time.perf_counter()
                try:
                    with silent():
                        function(source, target, recipe, batches)
                except Exception as error:
                    rows[f"{recipe} {tool}"] = {"error": f"{type(error).__name__}: {error}"[:90]}
                    continue
                rows[f"{recipe} {tool}"] = {"seconds": time.perf_counter() - started}
                paths[f"{recipe} {tool}"] = target
        measure(paths, rows, feeds(name, names, COMPARED, 99), options)
    print(json.dumps(rows))


def measure(
    paths: dict[str, Path], rows: dict[str, dict[str, Any]], inputs: list[Any], options: Any
) -> None:
    import onnxruntime

    sessions = {}
    for label, path in paths.items():
        try:
            sessions[label] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            rows[label] = {**rows.get(label, {}), "error": f"does not load: {error}"[:90]}
    results = {k: [s.run(None, f)[0] for f in inputs] for k, s in sessions.items()}
    times: dict[str, list[float]] = {k: [] for k in sessions}
    for number in range(ROUNDS):
        order = list(sessions.items())
        for label, session in order if number % 2 == 0 else reversed(order):
            started = time.perf_counter()
            session.run(None, inputs[0])
            times[label].append(time.perf_counter() - started)
    for label in sessions:
        row = rows.setdefault(label, {})
        row["latency"] = float(np.median(times[label]))
        row["bytes"] = paths[label].stat().st_size
        if label != "float":
            signal = sum(float((np.asarray(a, np.float64) ** 2).sum()) for a in results["float"])
            noise = sum(
                float(((np.asarray(a, np.float64) - b) ** 2).sum())
                for a, b in zip(results["float"], results[label], strict=True)
            )
            row["snr"] = float(10 * np.log10(signal / max(noise, 1e-30)))


def memory() -> None:
    """Peak memory of a calibration, as multiples of the float model, for more and more batches."""
    import bridge

    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "float.onnx"
        model, args, dynamic = build("resnet50")
        bridge.export(model, args, source, dynamic_shapes=dynamic, verify=False)
        del model
        command = [sys.executable, "-m", "tests.benchmarks.quantize", "--calibrate", str(source)]
        size = source.stat().st_size
        for count in (10, 1000):
            done = subprocess.run(
                [*command, str(count)], capture_output=True, text=True, check=True
            )
            peak, activations, seconds = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{count} samples: peak {peak / size:.2f} times the model's {size / 2**20:.0f} MB, "
                f"{(peak - activations) / size:.2f} without one batch's activations, {seconds:.1f} s",
                flush=True,
            )


def calibrate(source: str, count: int) -> None:
    """Calibrate in a process of its own; prints peak, one batch's activations, and seconds."""
    from bridge.files import load_model
    from bridge.quantizing.building import Builder
    from bridge.quantizing.recipes import find_recipe
    from tests.optim_passes.running import parse

    # What libraries take for themselves is there before the measurement.
    small = parse(
        """g (float[1, 8, 8, 8] x, float[8, 8, 1, 1] w) => (float[1, 8, 8, 8] y) {
            h = Conv(x, w)
            y = Conv(h, w)
        }""",
        w=np.ones((8, 8, 1, 1), np.float32),
    )
    Builder(small, find_recipe("int8-static")).calibrate([np.ones((1, 8, 8, 8), np.float32)])
    rng = np.random.default_rng(0)
    batches = (rng.standard_normal((1, 3, 224, 224)).astype(np.float32) for _ in range(count))
    started = time.perf_counter()
    with PeakMemory() as peak:
        builder = Builder(load_model(source), find_recipe("int8-static"))
        builder.calibrate(batches)
    histograms = builder.calibration.histograms.values()
    activations = sum(4 * h.total // h.batches for h in histograms if h.batches)
    print(json.dumps([peak.above, activations, time.perf_counter() - started]))


def rows_of(name: str, results: Path | None) -> dict[str, dict[str, Any]]:
    """A model's figures: those that an earlier run wrote down, else those of a process of its own."""
    if results is not None and results.exists():
        for line in results.read_text().splitlines():
            known = json.loads(line)
            if known["model"] == name:
                return dict(known["rows"])
    recipes = [r for r in RECIPES if not (r == "int4-weights" and name in (*IMAGES, "lstm"))]
    command = [sys.executable, "-m", "tests.benchmarks.quantize"]
    command += ["--one", name, ",".join(recipes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [x for x in done.stdout.splitlines() if x.startswith("{")]
    if not lines:
        raise SystemExit(f"{name}: {done.stderr.strip()[-2000:]}")
    rows: dict[str, dict[str, Any]] = json.loads(lines[-1])
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps({"model": name, "rows": rows}) + "\n")
    return rows


def main() -> None:
    """Print the tables; what is in the file ``BENCH_RESULTS`` is not measured again."""
    kept = os.environ.get("BENCH_RESULTS")
    results = None if kept is None else Path(kept)
    print("| model | recipe | tool | latency | over float | SNR | quantized in | file |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    gains = []
    for name in os.environ.get("BENCH_MODELS", ",".join(MODELS)).split(","):
        rows = rows_of(name, results)
        base = rows["float"]["latency"]
        for label, row in rows.items():
            recipe, _, tool = label.rpartition(" ") if label.startswith("int") else (label, "", "")
            if "error" in row:
                print(f"| {name} | {recipe} | {tool} | {row['error']} | | | | |")
                continue
            snr = f"{row['snr']:.1f} dB" if "snr" in row else ""
            seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
            print(
                f"| {name} | {recipe} | {tool} | {1e3 * row['latency']:.2f} ms | "
                f"{base / row['latency']:.2f}x | {snr} | {seconds} | {row['bytes'] / 2**20:.0f} MB |",
                flush=True,
            )
        for recipe in RECIPES:
            mine, theirs = rows.get(f"{recipe} bridge", {}), rows.get(f"{recipe} incumbent", {})
            if "snr" in mine and "snr" in theirs:
                gains.append((mine["snr"] - theirs["snr"], theirs["seconds"] / mine["seconds"]))
    if gains:
        print(
            f"\nSNR over the incumbent's: {np.mean([g[0] for g in gains]):+.1f} dB in the mean; "
            f"quantization: {np.exp(np.mean(np.log([g[1] for g in gains]))):.1f} times as fast in the "
            f"geometric mean, {min(g[1] for g in gains):.1f} at least\n"
        )
    if "BENCH_MODELS" not in os.environ:
        memory()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--calibrate", nargs=2)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], tuple(given.one[1].split(",")))
    elif given.calibrate:
        calibrate(given.calibrate[0], int(given.calibrate[1]))
    else:
        main()

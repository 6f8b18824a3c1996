"""How long an export takes and how much memory it needs, beside ``torch.onnx.export``.

Each export runs in a process of its own, A B A B; a process exports a small model first, which pays
for what is imported on demand, then the model twice, and reports the faster one and the peak of its
memory above what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from tests import torchvision_shim

MODELS = ("resnet50", "bert_base")
ROUNDS = 3


def build(name: str) -> tuple[Any, tuple[Any, ...], Any]:
    """A full-size model with an example and its dynamic dims."""
    import torch

    torch.manual_seed(0)
    torchvision_shim.install()  # transformers imports torchvision, too
    if name == "resnet50":
        import torchvision

        model = torchvision.models.resnet50(weights=None).eval()
        return model, (torch.randn(1, 3, 224, 224),), ({0: "batch"},)
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig())

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.bert(input_ids, attention_mask).last_hidden_state

    ids = torch.randint(0, 1000, (2, 128))
    return Encoder().eval(), (ids, torch.ones_like(ids)), ({0: "batch", 1: "length"},) * 2


class PeakMemory:
    """The highest resident memory while the block runs, in bytes above its start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.highest = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: object) -> None:
        self.highest = max(self.highest, resident())
        self._stop.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self.highest - self.start


def resident() -> int:
    """This process's resident memory in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(model: Any, args: tuple[Any, ...], dynamic: Any, path: str) -> dict[str, float]:
    import bridge

    program = bridge.export(model, args, path, dynamic_shapes=dynamic, verify=False)
    return program.report.seconds


def incumbent(model: Any, args: tuple[Any, ...], dynamic: Any, path: str) -> dict[str, float]:
    import torch

    shapes = tuple(dict.fromkeys(d, torch.export.Dim.DYNAMIC) for d in dynamic)
    torch.onnx.export(model, args, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    return {}


EXPORTERS: dict[str, Callable[..., dict[str, float]]] = {"bridge": ours, "torch.onnx": incumbent}


def one(name: str, exporter: str) -> None:
    """Run in a process of its own: export twice, print figures as JSON."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "4")))
    model, args, dynamic = build(name)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    worlds = [args]
    if exporter == "bridge":
        from exporters.pytorch.inputs import bind, world_leaves
        from exporters.tracing.worlds import first_sizes, parse_dynamic_shapes

        bound = bind(model, args, None)
        shapes = [tuple(x.shape) for x in bound.leaves]
        symbols = parse_dynamic_shapes(dynamic, bound.names, list(bound.tree.paths()), shapes)
        taken = {n for s in shapes for n in s}
        worlds.append(tuple(world_leaves(bound.leaves, symbols, first_sizes(symbols, taken))))
    with torch.no_grad():
        for world in worlds:
            model(*world)
        eager = 0.0
        for world in worlds:
            started = time.perf_counter()
            model(*world)
            eager += time.perf_counter() - started
    seconds, memory, phases = [], [], {}
    small = torch.nn.Linear(2, 2).eval(), (torch.randn(2, 2),), ({0: "batch"},)
    with tempfile.TemporaryDirectory() as folder:
        EXPORTERS[exporter](*small, os.path.join(folder, "small.onnx"))
        for number in range(2):
            with PeakMemory() as peak:
                started = time.perf_counter()
                path = os.path.join(folder, f"{number}.onnx")
                phases = EXPORTERS[exporter](model, args, dynamic, path)
                seconds.append(time.perf_counter() - started)
            memory.append(peak.above)
    print(json.dumps({
        "seconds": min(seconds), "first": seconds[0], "peak": memory[0], "weights": weights,
        "eager": eager, "phases": phases,
    }))  # fmt: skip


def measure(name: str, exporter: str) -> dict[str, Any]:
    """Figures of one process."""
    command = [sys.executable, "-m", "tests.benchmarks.export", "--one", name, exporter]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(found.stderr[-2000:])
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def main() -> None:
    """Print a table: seconds, ratio, memory."""
    print(
        "| model | bridge s | torch.onnx s | ratio | tracing / eager worlds | peak above weights |"
    )
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        runs: dict[str, list[dict[str, Any]]] = {k: [] for k in EXPORTERS}
        for _ in range(ROUNDS):
            for exporter in EXPORTERS:
                runs[exporter].append(measure(name, exporter))
        mine = statistics.median(r["seconds"] for r in runs["bridge"])
        theirs = statistics.median(r["seconds"] for r in runs["torch.onnx"])
        trace = statistics.median(r["phases"]["trace"] for r in runs["bridge"])
        eager = statistics.median(r["eager"] for r in runs["bridge"])
        peak = statistics.median(r["peak"] for r in runs["bridge"])
        their_peak = statistics.median(r["peak"] for r in runs["torch.onnx"])
        weights = runs["bridge"][0]["weights"]
        print(
            f"| {name} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.1f}x | "
            f"{trace:.3f} / {eager:.3f} s | {peak / 2**20:.0f} MB "
            f"({peak / weights:.2f} of {weights / 2**20:.0f} MB; torch.onnx {their_peak / 2**20:.0f} MB) |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
    else:
        main()

"""How long BERT-large takes to optimise, and how much memory beyond its weights.

The model is exported to a file, which a process of its own then optimises and saves; its peak is
told with the comparison on probes (``verify``) and without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import torchvision_shim
from tests.benchmarks.export import PeakMemory


def make(path: Path) -> None:
    """BERT-large with random weights."""
    import torch

    torchvision_shim.install()
    from transformers import BertConfig, BertModel

    import bridge

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 99, (2, 16))
    kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shapes = {name: {0: "batch", 1: "length"} for name in kwargs}
    bridge.export(model, (), path, kwargs=kwargs, dynamic_shapes=shapes, verify=False)


def one(path: Path, *, verify: bool) -> None:
    """Optimise and save a file; print figures as JSON."""
    import bridge

    weights = path.stat().st_size
    with PeakMemory() as peak:
        started = time.perf_counter()
        program = bridge.optimize(path, path.with_name("fast.onnx"), verify=verify)
        seconds = time.perf_counter() - started
    report = program.report
    fused = {e.kind: f"{e.achieved} of {e.expected}" for e in report.expected}  # type: ignore[union-attr]
    figures = {"seconds": seconds, "peak": peak.above, "weights": weights, "fused": fused,
               "phases": report.seconds}  # fmt: skip
    print(json.dumps(figures))


def main() -> None:
    """Print a table."""
    print("| BERT-large | seconds | of these passes | peak above the start, in weights | fused |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        make(path)
        for verify in (False, True):
            command = [sys.executable, "-m", "tests.benchmarks.optimize_large", "--one", str(path)]
            found = subprocess.run(
                [*command, *["--verify"] * verify], capture_output=True, text=True, check=False
            )
            lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
            if not lines:
                raise SystemExit(found.stderr[-2000:])
            row = json.loads(lines[-1])
            told = ", ".join(f"{v} {k}" for k, v in row["fused"].items())
            print(
                f"| {'compared on probes' if verify else 'passes and saving'} | "
                f"{row['seconds']:.1f} | {row['phases']['passes']:.1f} | "
                f"{row['peak'] / row['weights']:.2f} | {told} |",
                flush=True,
            )
            print(row["phases"], file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=Path)
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    if options.one:
        one(options.one, verify=options.verify)
    else:
        main()

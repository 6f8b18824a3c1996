"""BERT-base on ONNX Runtime's CPU provider as exported, beside ``torch.onnx.export``'s export.

Both graphs run in one process, A B A B, in ONNX Runtime's default optimisation; medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from typing import Any

SHAPES = ((1, 32), (1, 128), (4, 128), (1, 384))
ROUNDS = 15


def sessions(folder: str, threads: int) -> dict[str, Any]:
    """A session of each export."""
    import onnxruntime as ort
    import torch

    import bridge
    from tests.benchmarks.export import build

    model, args, dynamic = build("bert_base")
    paths = {}
    for name, opset in (("bridge", None), ("torch.onnx", None), ("torch.onnx at 23", 23)):
        paths[name] = os.path.join(folder, f"{name}.onnx")
        if name == "bridge":
            bridge.export(model, args, paths[name], dynamic_shapes=dynamic, verify=False)
            continue
        shapes = tuple(dict.fromkeys(d, torch.export.Dim.DYNAMIC) for d in dynamic)
        torch.onnx.export(
            model,
            args,
            paths[name],
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
            opset_version=opset,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return {
        n: ort.InferenceSession(p, options, providers=["CPUExecutionProvider"])
        for n, p in paths.items()
    }


def main() -> None:
    """Print a table: milliseconds, and how many times faster bridge's export runs."""
    import numpy as np

    warnings.simplefilter("ignore")
    print(
        "| threads | batch x length | bridge ms | torch.onnx ms | torch.onnx at opset 23 ms | ratios |"
    )
    print("|---|---|---|---|---|---|")
    for threads in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            table = sessions(folder, threads)
            for batch, length in SHAPES:
                ids = np.random.default_rng(0).integers(0, 1000, (batch, length))
                seconds: dict[str, list[float]] = {name: [] for name in table}
                for _ in range(ROUNDS):
                    for name, session in table.items():
                        feed = {
                            i.name: v
                            for i, v in zip(
                                session.get_inputs(), (ids, np.ones_like(ids)), strict=True
                            )
                        }
                        started = time.perf_counter()
                        session.run(None, feed)
                        seconds[name].append(time.perf_counter() - started)
                ms = {n: 1000 * statistics.median(s[2:]) for n, s in seconds.items()}
                mine, *others = ms.values()
                print(
                    f"| {threads} | {batch} x {length} | {' | '.join(f'{v:.1f}' for v in ms.values())} | "
                    f"{', '.join(f'{v / mine:.2f}x' for v in others)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

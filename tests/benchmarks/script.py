"""Programs with control flow: eager PyTorch beside ONNX Runtime, both on one thread.

``python -m tests.benchmarks script`` prints a table of every program in ``tests/script/programs``
that has large inputs, and a line for each that ONNX Runtime runs slower. Eager code and the
exported program are called in turns, with torch tensors in and out; the medians are compared.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

ROUNDS, SECONDS = 7, 0.15
# What people write by hand most often; marked with a star in the table.
COMMON = frozenset(
    """
    lstm_greedy lstm_beam gpt_greedy gpt_beam ctc_greedy viterbi nms dynamic_rnn adaptive_computation
    early_exit routed_experts adaptive_ode sinkhorn power_iteration kmeans levenshtein game_of_life
    """.split()
)
DETECTORS = (
    "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16",
)  # fmt: skip


def interleaved(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Seconds per call of each: the medians of rounds in turns."""
    for function in (first, second):
        function()
        function()
    started = time.perf_counter()
    first()
    calls = max(1, int(SECONDS / ROUNDS / max(time.perf_counter() - started, 1e-6)))
    rounds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for times, function in zip(rounds, (first, second), strict=True):
            started = time.perf_counter()
            for _ in range(calls):
                function()
            times.append((time.perf_counter() - started) / calls)
    return statistics.median(rounds[0]), statistics.median(rounds[1])


def measure(name: str) -> dict[str, float]:
    """Seconds of export, and per call eagerly, as exported and optimized."""
    import torch

    import bridge
    from tests.script.programs import CASES

    case = _detector(name) if name in DETECTORS else CASES[name]
    function = case.make()
    started = time.perf_counter()
    program = bridge.export(
        function, case.example, dynamic_shapes=case.dynamic, examples=case.examples or None
    )
    export = time.perf_counter() - started
    fast = bridge.optimize(program, target="cpu")
    inputs = case.large
    assert inputs is not None

    def eager() -> Any:
        with torch.no_grad():
            return function(*inputs)

    plain, exported = interleaved(eager, lambda: program(*inputs))
    again, optimized = interleaved(eager, lambda: fast(*inputs))
    return {
        "export": export,
        "eager": (plain + again) / 2,
        "exported": exported,
        "optimized": optimized,
        "ratio": plain / exported,
        "optimized_ratio": again / optimized,
    }


def _detector(name: str) -> Any:
    """A detector of torchvision, for images of any size."""
    from tests.script.programs.case import Case
    from tests.zoo.test_detection import build, image

    return Case(
        lambda: build(name),
        ([image(96, 128)],),
        dynamic=([{1: "height", 2: "width"}],),
        large=([image(200, 333, seed=1)],),
    )


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean that treats twice as fast and half as fast alike."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main() -> None:
    """Print the table; ``BENCH_PROGRAMS=nms,kmeans`` measures these only."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.script.programs import CASES

    wanted = os.environ.get("BENCH_PROGRAMS")
    sized = [n for n, case in CASES.items() if case.large is not None]
    names = wanted.split(",") if wanted else [*sized, *DETECTORS]
    print("| program | export s | eager ms | exported ms | optimized ms | exported | optimized |")
    print("|---|---|---|---|---|---|---|")
    rows: dict[str, dict[str, float]] = {}
    common = COMMON.union(DETECTORS)
    for name in names:
        try:
            row = rows[name] = measure(name)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        print(
            f"| {name}{' *' if name in common else ''} | {row['export']:.2f} | {row['eager'] * 1e3:.2f} | "
            f"{row['exported'] * 1e3:.2f} | {row['optimized'] * 1e3:.2f} | "
            f"{row['ratio']:.1f}x | {row['optimized_ratio']:.1f}x |",
            flush=True,
        )
    for key in ("ratio", "optimized_ratio"):
        ratios = [row[key] for row in rows.values()]
        starred = [row[key] for name, row in rows.items() if name in common]
        slower = [name for name, row in rows.items() if row[key] < 1]
        label = "as exported" if key == "ratio" else "optimized"
        print(
            f"\n{label}: geometric mean {geometric_mean(ratios):.2f}x of {len(ratios)} programs, "
            f"{geometric_mean(starred or [math.nan]):.2f}x of the {len(starred)} with a star; "
            f"slower than eager: {', '.join(slower) or 'none'}"
        )


if __name__ == "__main__":
    main()

"""What a session adds to ONNX Runtime's own run, on a model that computes next to nothing.

Run with ``python -m tests.benchmarks session_overhead``.
"""

from __future__ import annotations

import time

import torch

import bridge


def overhead(device: str = "cpu", repeat: int = 200, count: int = 30) -> dict[str, float]:
    """Seconds per call, the best of many short rounds, by way of calling.

    A round is shorter than a time slice, so that some rounds are nobody else's.
    """
    module = torch.nn.Linear(8, 8).eval()
    program = bridge.export(module, torch.ones(2, 8), dynamic_shapes={"input": {0: "batch"}})
    session = program.session(providers="cpu" if device == "cpu" else "cuda,cpu")
    x = torch.ones(2, 8, device=device)
    array = x.cpu().numpy()
    calls = {
        "onnxruntime": lambda: session.runtime.run(None, {"input": array}),
        "run, torch": lambda: session.run({"input": x}),
        "run, numpy": lambda: session.run({"input": array}),
        "call, torch": lambda: session(x),
    }
    if device != "cpu":
        calls["onnxruntime"] = _bound_run(session, x)
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeat):
        for name, call in calls.items():  # interleaved, so that a slow moment hits all alike
            call()
            started = time.perf_counter()
            for _ in range(count):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / count)
    return best


def _bound_run(session, x):
    """ONNX Runtime's own run with everything bound to device memory beforehand."""
    import numpy as np

    y = torch.empty(2, 8, device=x.device)
    binding = session.runtime.io_binding()
    binding.bind_input("input", "cuda", 0, np.float32, (2, 8), x.data_ptr())
    binding.bind_output("output", "cuda", 0, np.float32, (2, 8), y.data_ptr())
    return lambda: session.runtime.run_with_iobinding(binding)


def main() -> None:
    """Print a Markdown table."""
    print(
        "| device | call | us | beyond ONNX Runtime's own run, us |\n| --- | --- | ---: | ---: |"
    )
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        measured = overhead(device)
        for name, seconds in measured.items():
            beyond = seconds - measured["onnxruntime"]
            print(f"| {device} | {name} | {1e6 * seconds:.2f} | {1e6 * beyond:.2f} |", flush=True)


if __name__ == "__main__":
    main()

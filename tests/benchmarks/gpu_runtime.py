"""Sessions on CUDA: what they add to ONNX Runtime's own run, and how fast they are beside eager.

Everything is measured side by side in one process, round by round, in medians; each section says
what it found as soon as it has it.
"""

from __future__ import annotations

import statistics
import time
import traceback
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch

import bridge
from tests.benchmarks.session_overhead import overhead
from tests.gpu.decoder import LARGE, Decoder, empty_cache, links
from tests.gpu.machine import HAS_CUDA

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 7


def interleaved(calls: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Median seconds per call, by name; every round runs each of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(count):
                call()
            torch.cuda.synchronize()
            times[name].append((time.perf_counter() - started) / count)
    return {name: statistics.median(t) for name, t in times.items()}


def steps() -> dict[str, float]:
    """Seconds of what a session does around ONNX Runtime's own run, each alone."""
    from onnxruntime.capi import _pybind_state as capi

    from bridge.device import DeviceRuns, ort_device

    program = bridge.export(torch.nn.Linear(8, 8).eval(), torch.ones(2, 8), verify=False)
    session = program.session(providers="cuda,cpu")
    x = torch.ones(2, 8, device="cuda")
    runs = DeviceRuns(session.runtime, session.inputs, session.outputs, session.device)
    options = onnxruntime.RunOptions()
    inner = session.runtime._sess
    binding = capi.SessionIOBinding(inner)
    place = ort_device(x.device)
    binding.bind_input("input", place, 1, x.shape, x.data_ptr())
    y = torch.empty(2, 8, device="cuda")
    binding.bind_output("output", place, 1, y.shape, y.data_ptr())
    return interleaved(
        {
            "Session.run": lambda: session.run({"input": x}),
            "DeviceRuns.run": lambda: runs.run({"input": x}, ["output"], options),
            "ONNX Runtime, bound before": lambda: inner.run_with_iobinding(binding, options),
            "stream.synchronize": lambda: torch.cuda.current_stream(x.device).synchronize(),
            "torch.empty": lambda: torch.empty((2, 8), device=x.device),
            "SessionIOBinding": lambda: capi.SessionIOBinding(inner),
            "bind_input": lambda: binding.bind_input("input", place, 1, x.shape, x.data_ptr()),
            "bind_output": lambda: binding.bind_output("output", place, 1, y.shape, y.data_ptr()),
        },
        500,
    )


def decode(dtype: torch.dtype) -> dict[str, float]:
    """Seconds per token of a GPT-2-sized decoder, the KV cache written in place."""
    model = Decoder(LARGE).eval().to(dtype)
    cache = (empty_cache(LARGE, dtype), empty_cache(LARGE, dtype))
    program = bridge.export(
        model, (torch.tensor([[5]]), torch.tensor([0]), *cache), opset=20, verify=False
    )
    session = bridge.Session(program, providers="cuda,cpu", cuda_graphs=True)
    plain = bridge.Session(program, providers="cuda,cpu")
    if session.graph_refusal:
        print(f"no CUDA graph: {session.graph_refusal}", flush=True)
    print(session.placement if session.placement.share("cuda") < 1 else "all on CUDA", flush=True)
    model = model.cuda()
    for block in model.blocks:
        block.in_place = True
    keys, values = (empty_cache(LARGE, dtype, "cuda") for _ in range(2))
    token, at = torch.tensor([[5]], device="cuda"), torch.tensor([0], device="cuda")
    name, place = session.input_names[:2]
    output = session.output_names[0]

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return model(token, at, keys, values)[0]

    loops = {
        "bridge, CUDA graph": session.bind(links(session), in_place=True),
        "bridge, no graph": plain.bind(links(plain), in_place=True),
    }
    for label, loop in loops.items():
        for step in range(5):
            at.fill_(step)
            token.fill_(7 * step + 1)
            error = (loop.run({name: token, place: at})[output] - eager()).abs().max()
            print(f"step {step}, {label}: off by {float(error):.2g}", flush=True)
    calls: dict[str, Callable[[], Any]] = {"eager": eager}
    for label, loop in loops.items():
        calls[label] = lambda loop=loop: loop.run({name: token, place: at})
    return interleaved(calls, 50)


def forward(name: str, tf32: int) -> dict[str, float]:
    """Seconds per run of a full-size model."""
    from tests.benchmarks.export import build

    model, args, dynamic = build(name)
    program = bridge.export(model, args, dynamic_shapes=dynamic, opset=20, verify=False)
    providers = f"cuda(use_tf32={tf32}),cpu"
    session = bridge.Session(program, providers=providers)
    graphs = bridge.Session(program, providers=providers, cuda_graphs=True)
    model = model.cuda()
    args = tuple(x.cuda() for x in args)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = bool(tf32)

    def eager() -> Any:
        with torch.inference_mode():
            return model(*args)

    error = (session(*args) - eager()).abs().max()
    print(f"off by {float(error):.2g}; {session.placement.share('cuda'):.1%} on CUDA", flush=True)
    for _ in range(3):
        graphs(*args)
    buckets = graphs._buckets
    print(
        f"graph: refusal {graphs.graph_refusal}, failure {buckets and buckets.failure}", flush=True
    )
    calls = {
        "eager": eager,
        "bridge": lambda: session(*args),
        "bridge, CUDA graph": lambda: graphs(*args),
    }
    return interleaved(calls, 20)


def table(title: str, times: dict[str, float]) -> None:
    """Print a Markdown table, each time beside the first one's."""
    base = next(iter(times.values()))
    print(f"\n| {title} | ms | times faster |\n| --- | ---: | ---: |")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * seconds:.3f} | {base / seconds:.2f} |")
    print(flush=True)


def main() -> None:
    """Run every section; one that fails does not keep the others from running."""
    if not HAS_CUDA:
        print("needs a CUDA device and onnxruntime-gpu")
        return
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"onnxruntime-gpu {onnxruntime.__version__}",
        flush=True,
    )
    sections: dict[str, Callable[[], dict[str, float]]] = {
        "a Linear of 8x8, tensors on CUDA": lambda: overhead("cuda"),
        "steps of a run on CUDA": steps,
        "GPT-2 size, one token, float32": lambda: decode(torch.float32),
        "GPT-2 size, one token, float16": lambda: decode(torch.float16),
        "ResNet-50, batch 1": lambda: forward("resnet50", 0),
        "ResNet-50, batch 1, TF32": lambda: forward("resnet50", 1),
        "BERT-base, 2 x 128 tokens": lambda: forward("bert_base", 0),
        "BERT-base, 2 x 128 tokens, TF32": lambda: forward("bert_base", 1),
    }
    for title, measure in sections.items():
        print(f"\n## {title}", flush=True)
        try:
            table(title, measure())
        except Exception:  # a machine is lent for a short while: the rest is still wanted
            traceback.print_exc()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""Models in fp16 on a GPU: optimised by bridge, beside eager and ``torch.compile``.

``python -m tests.benchmarks.gpu --json results.json`` on a machine whose ONNX Runtime has the CUDA
provider. In each round every contestant runs for a moment, one after the other; a ratio is the
median over the rounds. Inputs and outputs are bound to device memory, and CUDA graphs are captured
where the provider can. ``--tiny`` runs small models on the CPU, to see that all of it works.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

import bridge
from bridge.cuda_graphs import FixedRun
from bridge.session import Session
from optim_passes.fusion.convolution import ConvActivationPass
from optim_passes.fusion.multi_head import PackedAttentionPass
from tests import torchvision_shim

TARGET = 1.0  # of torch.compile's speed, in the geometric mean
ROUNDS = 15
MOMENT = 0.15  # seconds that a contestant runs in each round

# Provider options that are tried; the fastest that works is measured. (fuse_conv_bias was slower or
# not supported wherever it was tried, and NHWC changes nothing for transformers.)
VARIANTS: dict[str, dict[str, str]] = {"NCHW": {}, "NHWC": {"prefer_nhwc": "1"}}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what it is called with at a batch size."""

    make: Callable[[], torch.nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...]]
    convolutional: bool = False


def vision(name: str) -> torch.nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def without_zeros(model: torch.nn.Module) -> torch.nn.Module:
    """The model as if it were trained: biases that start at zero would not even be computed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def bert(**sizes: int) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(**sizes), add_pooling_layer=False)

        def forward(self, input_ids: Any) -> Any:
            return self.bert(input_ids).last_hidden_state

    return Encoder()


def tiny_vit() -> torch.nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)


def picture(batch: int, size: int = 224) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, size, size),)


def tokens(batch: int, length: int = 128) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 99, (batch, length)),)


SUBJECTS = {
    "resnet50": Subject(lambda: vision("resnet50"), picture, convolutional=True),
    "vit_b_16": Subject(lambda: vision("vit_b_16"), picture),
    "bert_base": Subject(bert, tokens),
}
TINY = {
    "resnet18": Subject(lambda: vision("resnet18"), lambda b: picture(b, 64), convolutional=True),
    "vit": Subject(tiny_vit, lambda b: picture(b, 32)),
    "bert": Subject(
        lambda: bert(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=64, vocab_size=99),
        lambda b: tokens(b, 16),
    ),
}  # fmt: skip


@dataclasses.dataclass
class Contestant:
    """Something that computes the model, called without arguments."""

    name: str
    call: Callable[[], Any]
    note: str = ""


def seconds(call: Callable[[], Any], device: str, count: int) -> float:
    """The time of one call, over ``count`` calls."""
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    _synchronize(device)
    return (time.perf_counter() - started) / count


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def calls_in_a_moment(call: Callable[[], Any], device: str, moment: float) -> int:
    for _ in range(3):
        call()
    return max(1, round(moment / seconds(call, device, 3)))


def eager_contestants(
    model: torch.nn.Module, args: tuple[Any, ...], options: argparse.Namespace, subject: Subject
) -> Iterator[Contestant]:
    """Eager code, and what ``torch.compile`` makes of it."""
    yield Contestant("eager", lambda: model(*args))
    if not options.compile:
        return
    compiled = torch.compile(copy.deepcopy(model), mode="reduce-overhead")
    yield Contestant("torch.compile", lambda: compiled(*args))
    if subject.convolutional:
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        compiled_nhwc = torch.compile(other, mode="reduce-overhead")
        turned = tuple(x.to(memory_format=torch.channels_last) for x in args)
        yield Contestant("torch.compile NHWC", lambda: compiled_nhwc(*turned))


def optimised(
    model: torch.nn.Module, args: tuple[Any, ...], options: argparse.Namespace, subject: Subject
) -> Iterator[tuple[str, bridge.Program]]:
    """The model in fp16 for the CUDA provider; sizes are fixed, as in a captured graph."""
    program = bridge.export(model, args, opset=options.opset, verify=False)
    apart = [p for p in bridge.passes.cuda if not isinstance(p, PackedAttentionPass)]
    pipelines = {"packed attention": bridge.passes.cuda, "attention on three products": apart}
    if subject.convolutional:
        pipelines = {"": bridge.passes.cuda, "FusedConv": [*apart, ConvActivationPass()]}
    for name, passes in pipelines.items():
        if options.tiny and name == "packed attention":
            continue  # the CPU has none
        with reported(name):
            made = bridge.optimize(
                program, target="cuda", passes=passes, precision="fp16", keep_io=False, inputs=args
            )
            yield name, made


def bridge_contestants(
    program: bridge.Program, args: tuple[Any, ...], device: str, form: str, subject: Subject
) -> Iterator[Contestant]:
    """Sessions of each variant, bound to device memory."""
    if device == "cpu":
        session = Session(program, providers="cpu")
        yield Contestant("bridge", lambda: session(*args), form)
        return
    for name, given in VARIANTS.items():
        if given and (not subject.convolutional or form == "FusedConv"):
            continue
        for graphs in (True, False):
            told = ", ".join(filter(None, [form, name, "" if graphs else "no CUDA graph"]))
            with reported(told):
                yield Contestant("bridge", bound_call(program, args, given, graphs=graphs), told)
                break


def bound_call(
    program: bridge.Program, args: tuple[Any, ...], given: dict[str, str], *, graphs: bool
) -> Callable[[], Any]:
    """A call of a session whose inputs and outputs keep their places on the device."""
    provider = ("CUDAExecutionProvider", given)
    session = Session(program, providers=[provider, "cpu"], cuda_graphs=graphs)
    if graphs and session.graph_refusal:
        raise RuntimeError(session.graph_refusal)
    fixed = fixed_run(session, args, graphs=graphs)
    # As with torch, a call does not wait for the device; whoever reads the result does.
    fixed._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    runtime, binding, run_options = session.runtime._sess, fixed._binding, fixed._options

    def call() -> Any:
        runtime.run_with_iobinding(binding, run_options)
        return next(iter(fixed.outputs.values()))

    return call


def fixed_run(session: Session, args: tuple[Any, ...], *, graphs: bool) -> FixedRun:
    feed = dict(zip(session.input_names, args, strict=True))
    outputs = {n: x.clone() for n, x in session.run(feed).items()}
    fixed = FixedRun(session, feed, outputs, graph_id=1 if graphs else None)
    for _ in range(4):  # the provider warms up, captures, and replays
        fixed.run({})
    return fixed


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Print what goes wrong, and go on."""
    try:
        yield
    except Exception as error:
        print(f"  {what}: {type(error).__name__}: {first_line(error)}", flush=True)
        if os.environ.get("BENCH_TRACEBACK"):
            traceback.print_exc()


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def best_of(found: list[Contestant], device: str, moment: float) -> Contestant:
    times = {}
    for index, contestant in enumerate(found):
        count = calls_in_a_moment(contestant.call, device, moment)
        times[index] = min(seconds(contestant.call, device, count) for _ in range(3))
        print(f"  {contestant.note or contestant.name}: {1e3 * times[index]:.3f} ms", flush=True)
    return found[min(times, key=times.__getitem__)]


def measure(
    name: str, subject: Subject, batch: int, options: argparse.Namespace
) -> dict[str, Any] | None:
    """Figures of one model at one batch size."""
    device = "cpu" if options.tiny else "cuda"
    torch.manual_seed(0)
    model = without_zeros(subject.make()).eval()
    args = subject.inputs(batch)
    programs: dict[str, bridge.Program] = {}
    started = time.perf_counter()
    for form, made in optimised(model, args, options, subject):
        programs[form] = made
        print(f"  {form}: {str(made.report).replace(chr(10), chr(10) + '  ')}", flush=True)
    took = time.perf_counter() - started
    dtype = torch.float32 if options.tiny else torch.float16
    model = model.to(device, dtype)
    here = tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in args)
    halves = tuple(x.half() if x.is_floating_point() else x for x in here)
    found: list[Contestant] = []
    for form, made in programs.items():
        for contestant in bridge_contestants(made, halves, device, form, subject):
            with reported(contestant.note):
                contestant.call()
                found.append(contestant)
    if not found:
        return None
    chosen = best_of(found, device, options.moment)
    with torch.inference_mode():
        got = chosen.call()
        _synchronize(device)
        error = difference(got, model(*here))
        contestants = [chosen]
        for contestant in eager_contestants(model, here, options, subject):
            with reported(contestant.name):
                contestant.call()
                contestants.append(contestant)
        times = race(contestants, device, options)
    program = programs[max((f for f in programs if chosen.note.startswith(f)), key=len)]
    row = {
        "model": name, "batch": batch, "variant": chosen.note, "error": error,
        "seconds to export and optimise": took, "ops": program.report.op_counts[1],  # type: ignore[union-attr]
        "milliseconds": {k: 1e3 * statistics.median(v) for k, v in times.items()},
        "faster than": {
            k: statistics.median(a / b for a, b in zip(v, times["bridge"], strict=True))
            for k, v in times.items() if k != "bridge"
        },
    }  # fmt: skip
    if options.profile and not options.tiny:
        with reported("profile"):
            session = Session(program, providers="cuda,cpu")
            row["profile"] = str(
                session.profile(dict(zip(session.input_names, halves, strict=True)))
            )
            print(row["profile"], flush=True)
    return row


def race(
    contestants: list[Contestant], device: str, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds for each call of each contestant, by round."""
    counts = [calls_in_a_moment(c.call, device, options.moment) for c in contestants]
    times: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(options.rounds):
        for contestant, count in zip(contestants, counts, strict=True):
            times[contestant.name].append(seconds(contestant.call, device, count))
    return times


def difference(got: Any, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    first = got[0] if isinstance(got, tuple | list) else got
    scale = float(expected.float().abs().max())
    return float((first.float() - expected.float()).abs().max()) / scale


def told(row: dict[str, Any]) -> str:
    times, ratios = row["milliseconds"], row["faster than"]
    columns = [
        f"{times[k]:.3f} ms ({ratios[k]:.2f}x)" if k in ratios else "-"
        for k in ("eager", "torch.compile", "torch.compile NHWC")
    ]
    return (
        f"| {row['model']} | {row['batch']} | {times['bridge']:.3f} ms | {' | '.join(columns)} | "
        f"{row['error']:.1e} | {row['variant'] or 'CPU'} |"
    )


HEADER = """
| model | batch | bridge | eager | torch.compile | torch.compile NHWC | off eager by | variant |
|---|---|---|---|---|---|---|---|"""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU")
    parser.add_argument("--models", nargs="*", help="some of the models")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--moment", type=float, default=MOMENT)
    parser.add_argument("--opset", type=int, help="of the export")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("--kernels", help="where to write the kernels that the runtime has")
    parser.add_argument("--profile", action="store_true", help="print the time of each operator")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print a row for each model and batch size as it comes, then the table."""
    options = arguments(argv or [])
    warnings.simplefilter("ignore")
    if not options.tiny and not torch.cuda.is_available():
        print("needs a CUDA device; --tiny runs on the CPU")
        return
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # cuDNN tells of each plan that it does not take
    if options.kernels:
        with reported("kernels"):
            from bridge.kernels import installed_kernels

            with open(options.kernels, "w") as file:
                json.dump(installed_kernels(), file)
    torchvision_shim.install()
    place = "CPU" if options.tiny else torch.cuda.get_device_name()
    print(f"{place}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}", flush=True)
    subjects = TINY if options.tiny else SUBJECTS
    rows: list[dict[str, Any]] = []
    for name, subject in subjects.items():
        for batch in options.batches if not options.models or name in options.models else ():
            print(f"{name}, batch {batch}", flush=True)
            with reported(name):
                row = measure(name, subject, batch, options)
                if row is not None:
                    rows.append(row)
                    print(told(row), flush=True)
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(rows, file, indent=1, default=str)
            torch.cuda.empty_cache()
    print(HEADER)
    print("\n".join(map(told, rows)))
    for other in ("torch.compile", "eager"):
        ratios = [r["faster than"][other] for r in rows if other in r["faster than"]]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            aim = f" (aim: {TARGET})" if other == "torch.compile" else ""
            print(f"\ngeometric mean against {other}: {mean:.2f}{aim}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""A Llama-style decoder of 1.1 billion random weights: time and memory of 4-bit weights, decoding speed.

A step decodes one token; the three forms run in turn, one after the other in memory, since together
they would not fit into 16 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.export import PeakMemory

LAYERS, WIDTH, INNER, HEADS, GROUPS, TOKENS = 22, 2048, 5632, 32, 4, 32000
STEPS = 8
FORMS = ("float", "fp16", "int4-weights")


def graph() -> Any:
    """The model, written down as a graph: torch would hold the weights a second time."""
    import onnx_ir as ir

    rng = np.random.default_rng(0)
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    count = 0

    def constant(array: Any, name: str) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        initializers.append(value)
        return value

    def weight(rows: int, columns: int, name: str) -> ir.Value:
        array = rng.standard_normal((rows, columns), dtype=np.float32)
        array *= 0.02
        return constant(array, name)

    def op(op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        nonlocal count
        count += 1
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"{op_type}_{count}")
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}.{index}"
        nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def tensor(name: str, dtype: ir.DataType, *dims: Any) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))

    size = WIDTH // HEADS
    ids = tensor("ids", ir.DataType.INT64, "batch", "length")
    inputs, outputs = [ids], []
    ones = constant(np.ones(WIDTH, np.float32), "norm")
    x = op("Gather", weight(TOKENS, WIDTH, "embed"), ids)
    for layer in range(LAYERS):
        past = [
            tensor(f"past.{layer}.{part}", ir.DataType.FLOAT, "batch", GROUPS, "past", size)
            for part in ("key", "value")
        ]
        inputs += past
        h = op("RMSNormalization", x, ones, axis=-1)
        q = op("MatMul", h, weight(WIDTH, WIDTH, f"{layer}.q"))
        k = op("MatMul", h, weight(WIDTH, GROUPS * size, f"{layer}.k"))
        v = op("MatMul", h, weight(WIDTH, GROUPS * size, f"{layer}.v"))
        y, *present = op(
            "Attention", q, k, v, None, *past, outputs=3, is_causal=1, q_num_heads=HEADS,
            kv_num_heads=GROUPS,
        )  # fmt: skip
        for part, value in zip(("key", "value"), present, strict=True):
            value.name = f"present.{layer}.{part}"
            value.type = ir.TensorType(ir.DataType.FLOAT)
            outputs.append(value)
        x = op("Add", x, op("MatMul", y, weight(WIDTH, WIDTH, f"{layer}.o")))
        h = op("RMSNormalization", x, ones, axis=-1)
        gate = op("MatMul", h, weight(WIDTH, INNER, f"{layer}.gate"))
        up = op("MatMul", h, weight(WIDTH, INNER, f"{layer}.up"))
        gated = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
        x = op("Add", x, op("MatMul", gated, weight(INNER, WIDTH, f"{layer}.down")))
    logits = op("MatMul", op("RMSNormalization", x, ones, axis=-1), weight(WIDTH, TOKENS, "head"))
    logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
    made = ir.Graph(
        inputs, [logits, *outputs], nodes=nodes, initializers=initializers,
        opset_imports={"": 23}, name="decoder",
    )  # fmt: skip
    return ir.Model(made, ir_version=10)


def make(folder: str) -> None:
    """Write the float model, then its 4-bit form; prints seconds and peak memory."""
    import bridge
    from bridge.files import save_model

    target = Path(folder)
    save_model(graph(), target / "float.onnx")
    found: dict[str, Any] = {}
    for form, recipe in (("fp16", "fp16"), ("int4-weights", "int4-weights")):
        started = time.perf_counter()
        with PeakMemory() as peak:
            made = bridge.quantize(target / "float.onnx", recipe, gate=False)
            made.save(target / f"{form}.onnx")
        found[form] = [time.perf_counter() - started, peak.highest]
        del made
    print(json.dumps(found))


def decode(folder: str, form: str) -> None:
    """Decode a few tokens; prints seconds per token, peak memory and file size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    size = WIDTH // HEADS
    with PeakMemory() as peak:
        session = onnxruntime.InferenceSession(
            Path(folder) / f"{form}.onnx", options, providers=["CPUExecutionProvider"]
        )
        feed: dict[str, Any] = {"ids": np.asarray([[1]])}
        for value in session.get_inputs()[1:]:
            feed[value.name] = np.zeros((1, GROUPS, 16, size), np.float32)
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            logits, *present = session.run(None, feed)
            times.append(time.perf_counter() - started)
            feed = dict(zip(feed, [logits[:, -1:].argmax(-1), *present], strict=True))
    files = sum(p.stat().st_size for p in Path(folder).glob(f"{form}.onnx*"))
    print(json.dumps([float(np.median(times)), peak.highest, files]))


def _run(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.benchmarks.quantize_llm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [x for x in done.stdout.splitlines() if x[:1] in "[{"]
    if not lines:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(lines[-1])


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        made = _run("--make", folder)
        rows: dict[str, list[Any]] = {f: [] for f in FORMS}
        for _ in range(2):
            for form in FORMS:
                rows[form].append(_run("--decode", folder, form))
    base = min(r[0] for r in rows["float"])
    print("| form | made in | peak while made | file | ms a token | over float | peak while run |")
    print("|---|---|---|---|---|---|---|")
    for form in FORMS:
        seconds, peak = made.get(form, (None, None))
        step, highest, size = min(rows[form])
        how = "" if seconds is None else f"{seconds:.0f} s"
        most = "" if peak is None else f"{peak / 2**30:.1f} GB"
        print(
            f"| {form} | {how} | {most} | {size / 2**30:.2f} GB | {1e3 * step:.0f} | "
            f"{base / step:.2f}x | {highest / 2**30:.1f} GB |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(sys.argv[2])
    elif sys.argv[1:2] == ["--decode"]:
        decode(sys.argv[2], sys.argv[3])
    else:
        main()

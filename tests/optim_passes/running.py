"""Models written as text, run on ONNX Runtime before and after a pass."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from optim_passes.pipeline import run

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
SIZES = {"N": 3, "M": 2, "B": 2, "S": 5, "H": 8, "W": 6}
OTHER_SIZES = {"N": 1, "M": 4, "B": 3, "S": 7, "H": 4, "W": 2}


def parse(text, *, opset=20, **arrays):
    """The model that ``text`` describes, with ``arrays`` as initializers."""
    proto = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    model = ir.from_proto(proto)
    for value in list(model.graph.inputs):
        if value.name in arrays:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(np.asarray(arrays[value.name]), name=value.name)
            value.shape = ir.Shape(np.asarray(arrays[value.name]).shape)
            model.graph.initializers.add(value)
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    return ir.from_proto(proto)


def feed_for(model, sizes, seed=0):
    rng = np.random.default_rng(seed)
    feed = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[d.value] for d in value.shape.dims]
        dtype = value.dtype.numpy()
        if dtype.kind == "f":
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feed[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feed[value.name] = rng.integers(0, 3, shape).astype(dtype)
    return feed


def session(model, *, plain=False):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
since_1_28 = pytest.mark.skipif(
    RUNTIME < (1, 28),
    reason="before 1.28, attention to nothing is not 0, and sums in blocked layouts are wrong",
)


def ops(model):
    """Node counts by op type, with the domain where it is not the default one."""
    names = [
        n.op_type if not n.domain else f"{n.domain.removeprefix('com.')}.{n.op_type}"
        for n in model.graph.all_nodes()
    ]
    names += [n.op_type for f in model.functions.values() for n in f]
    return dict(collections.Counter(names))


def check_same(before, after, feeds, *, rtol=1e-5, atol=1e-6):
    """Both models are valid and give the same results."""
    onnx.checker.check_model(ir.to_proto(after), full_check=False)
    names = [v.name for v in before.graph.outputs]
    assert [v.name for v in after.graph.outputs] == names
    assert [v.name for v in after.graph.inputs] == [v.name for v in before.graph.inputs]
    first, second = session(before, plain=True), session(after)
    for feed in feeds:
        for name, want, got in zip(
            names, first.run(names, feed), second.run(names, feed), strict=True
        ):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)


def optimise(model, *passes, rtol=1e-5, atol=1e-6, sizes=(SIZES, OTHER_SIZES), feeds=None):
    """The model after some passes, which change no result at two choices of sizes.

    Returns:
        The op counts and the report.
    """
    before = ir.from_proto(ir.to_proto(model))
    feeds = feeds or [feed_for(model, s, seed) for seed, s in enumerate(sizes)]
    model, report = run(model, passes)
    check_same(before, model, feeds, rtol=rtol, atol=atol)
    return ops(model), report


def reasons(report):
    return {r.reason for r in report.refusals}

"""Traced numbers: what Python computes in each world, and the graph at any size."""

from __future__ import annotations

import copy
import math
import operator
import pickle

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from exporters.tracing.finish import build_model
from exporters.tracing.scalars import ScalarRecord, TracedBool, TracedFloat, TracedInt, plain
from exporters.tracing.source import SourceFinder
from exporters.tracing.trace import Interrupt, Trace

DTYPES = {int: ir.DataType.INT64, float: ir.DataType.DOUBLE, bool: ir.DataType.BOOL}


class Numbers:
    """A trace whose inputs are Python numbers, one per world."""

    def __init__(self, *names_and_worlds):
        self.trace = Trace(len(names_and_worlds[0][1]), opset=23, finder=SourceFinder())
        self.inputs = []
        self.handles = []
        for name, worlds in names_and_worlds:
            kind = type(worlds[0])
            value = ir.Value(name=name, type=ir.TensorType(DTYPES[kind]), shape=ir.Shape([]))
            self.inputs.append(value)
            record = ScalarRecord(self.trace, dict(enumerate(worlds)), data=False, scalar=value)
            self.handles.append(self.trace.number(record, kind))

    def runner(self, result):
        model = build_model(self.trace, self.inputs, [result.scalar()], ["y"], name="g")
        evaluator = ReferenceEvaluator(ir.to_proto(model))

        def run(*inputs):
            values = zip(self.inputs, inputs, strict=True)
            return evaluator.run(
                None, {v.name: np.asarray(x, v.dtype.numpy()) for v, x in values}
            )[0]

        return run


INTEGERS = st.integers(-50, 50)
BINARY = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod,
}  # fmt: skip
NAMES = dict(zip(BINARY, ["add", "sub", "mul", "truediv", "floordiv", "mod"], strict=True))
BITS = {"&": operator.and_, "|": operator.or_, "^": operator.xor}


def evaluate(tree, leaves):
    if isinstance(tree, str):
        return leaves[tree]
    if isinstance(tree, int | float):
        return tree
    name, *operands = tree
    values = [evaluate(x, leaves) for x in operands]
    if name in NAMES and type(values[0]) is float and isinstance(values[1], TracedInt):
        # float.__add__ takes any int for its value and does not ask it; compiled code asks the trace
        return values[1].record.trace.arithmetic(NAMES[name], *values)
    if name in BINARY:
        return BINARY[name](*values)
    if name in BITS:
        return BITS[name](*[int(v) if isinstance(v, float) else v for v in values])
    return {"neg": operator.neg, "abs": abs, "divmod": lambda a, b: divmod(a, b)[1]}[name](*values)


TREES = st.recursive(
    st.sampled_from(["a", "b", "c"]) | INTEGERS | st.sampled_from([0.5, -2.25, 3.0]),
    lambda inner: (
        st.tuples(st.sampled_from([*BINARY]), inner, inner)
        | st.tuples(st.just("divmod"), st.sampled_from(["a", "b", "c"]), inner)
        | st.tuples(st.sampled_from(["neg", "abs"]), inner)
    ),
    max_leaves=6,
)


@hypothesis.given(
    tree=TREES,
    a=st.lists(INTEGERS, min_size=3, max_size=3),
    b=st.lists(INTEGERS, min_size=3, max_size=3),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_arithmetic_is_pythons_in_worlds_and_graph(tree, a, b):
    c = [x / 4 for x in a]
    try:
        expected = [
            evaluate(tree, {"a": i, "b": j, "c": k}) for i, j, k in zip(a, b, c, strict=True)
        ]
    except (ZeroDivisionError, OverflowError):
        return
    numbers = Numbers(("a", a[:2]), ("b", b[:2]), ("c", c[:2]))
    with numbers.trace:
        result = evaluate(tree, dict(zip("abc", numbers.handles, strict=True)))
    if not isinstance(result, TracedInt | TracedFloat):
        assert result == expected[0]
        return
    assert list(result.record.worlds.values()) == expected[:2]
    assert type(plain(result)) is type(expected[0])
    run = numbers.runner(result)
    for i in range(3):  # the third one is new to the graph
        found = run(a[i], b[i], c[i])
        assert found.dtype == DTYPES[type(expected[i])].numpy()
        np.testing.assert_allclose(found, expected[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("a", "b"), [(1.0, 0.1), (-7.5, 2.0), (7.5, -2.0), (0.3, 0.1), (6.0, 3.0)]
)
@pytest.mark.parametrize("op", [operator.floordiv, operator.mod])
def test_division_of_floats_floors_as_pythons(op, a, b):
    numbers = Numbers(("a", [a]), ("b", [b]))
    with numbers.trace:
        result = op(*numbers.handles)
    np.testing.assert_allclose(numbers.runner(result)(a, b), op(a, b), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("op", [*BITS.values(), operator.lshift, operator.rshift])
def test_bits(op):
    numbers = Numbers(("a", [12, 7]), ("b", [3, 2]))
    with numbers.trace:
        result = op(*numbers.handles)
    assert numbers.runner(result)(29, 4) == op(29, 4)


@pytest.mark.parametrize("function", [round, math.floor, math.ceil, math.trunc])
@pytest.mark.parametrize("x", [2.5, -2.5, 3.5, 0.4, -0.6])
def test_rounding_to_integers(function, x):
    numbers = Numbers(("a", [1.25, 0.75]))
    with numbers.trace:
        result = function(numbers.handles[0])
    assert isinstance(result, TracedInt)
    assert numbers.runner(result)(x) == function(x)


def test_comparisons_in_which_worlds_agree_are_assumed():
    numbers = Numbers(("a", [3, 5]))
    with numbers.trace:
        assert (numbers.handles[0] > 2) is True
    assert len(numbers.trace.assumptions) == 1


def test_comparisons_in_which_worlds_disagree_stop_the_trace():
    numbers = Numbers(("a", [3, 5]))
    with numbers.trace, pytest.raises(Interrupt, match="the worlds disagree on the comparison"):
        _ = numbers.handles[0] > 4


def test_a_number_certainly_equals_itself():
    numbers = Numbers(("a", [3, 5]))
    (a,) = numbers.handles
    with numbers.trace:
        assert a == numbers.trace.number(a.record, int)
    assert numbers.trace.assumptions == []


def test_after_the_trace_a_number_is_a_plain_one():
    numbers = Numbers(("a", [3, 5]), ("c", [0.5, 1.5]), ("d", [True, True]))
    a, c, d = numbers.handles
    assert isinstance(d, TracedBool)
    assert (a + 1, type(a + 1)) == (4, int)
    assert (a > 4, c * 2, bool(d), -a) == (False, 1.0, True, -3)
    assert [10, 20, 30, 40][a] == 40
    assert list(range(a)) == [0, 1, 2]
    assert {a: 1}[3] == 1
    for clone in (pickle.loads(pickle.dumps(a)), copy.deepcopy([a])[0]):
        assert clone == 3
    assert f"{a:03d} {c:.2f} {a}" == "003 0.50 3"
    assert type(pickle.loads(pickle.dumps(c))) is float


def test_a_plain_integer_of_a_number_on_which_worlds_disagree_stops_the_trace():
    numbers = Numbers(("a", [0, 1]))
    with numbers.trace, pytest.raises(Interrupt, match=r"the worlds disagree on int\(\)"):
        int(numbers.handles[0])

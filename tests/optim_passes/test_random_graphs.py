"""Random small graphs: no pass changes what they compute, or makes them invalid."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from optim_passes.fusion.multi_head import PackedAttentionPass
from optim_passes.pipeline import leaves, pass_name, run
from optim_passes.pipelines import CPU, CUDA, PORTABLE
from tests.optim_passes.running import check_same, feed_for, session

# Only the CUDA provider has a kernel for packed queries, keys and values.
ON_CPU = tuple(p for p in CUDA if not isinstance(p, PackedAttentionPass))
PIPELINES = {"cpu": CPU, "cuda": ON_CPU, "portable": PORTABLE}
PASSES = {
    (pass_name(p), str(vars(p))): p for pipeline in PIPELINES.values() for p in leaves(pipeline)
}
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Erf", "Abs", "HardSigmoid", "Softplus")
BINARY = ("Add", "Mul", "Sub", "Max")
SIZES = ({"N": 2}, {"N": 1}, {"N": 5})


class Graph:
    """A graph that grows by choices of ``draw``; all values are float32 with a batch axis N."""

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))
        self.nodes, self.initializers, self.inputs = [], [], []
        self.values = []
        for shape in (("N", 4, 6), ("N", 4, 6), ("N", 4, 8, 8)):
            value = ir.Value(name=f"x{len(self.inputs)}", shape=ir.Shape(shape))
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self.inputs.append(value)
            self.values.append((value, shape))

    def pick(self, fits=lambda shape: True):
        found = [v for v in self.values if fits(v[1])]
        assume(found)
        return self.draw(st.sampled_from(found[-6:]))

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def constant(self, array):
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        value = ir.Value(name=f"c{len(self.initializers)}", const_value=ir.tensor(array))
        value.type, value.shape = (
            ir.TensorType(ir.DataType(value.const_value.dtype)),
            ir.Shape(array.shape),
        )
        self.initializers.append(value)
        return value

    def weight(self, *shape):
        return self.constant(self.rng.standard_normal(shape) * 0.5)

    def node(self, op_type, *inputs, outputs=1, **attributes):
        operands = [
            x if isinstance(x, ir.Value) or x is None else self.constant(x) for x in inputs
        ]
        node = ir.node(
            op_type, operands, attributes, num_outputs=outputs, name=f"n{len(self.nodes)}"
        )
        for index, value in enumerate(node.outputs):
            value.name = f"v{len(self.nodes)}_{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def add(self, value, shape):
        self.values.append((value, tuple(shape)))

    def step(self):
        getattr(self, self.one_of(*[n for n in dir(self) if n.startswith("grow_")]))()

    def grow_unary(self):
        x, shape = self.pick()
        self.add(self.node(self.one_of(*UNARY), x), shape)

    def grow_binary(self):
        x, shape = self.pick()
        y = self.one_of("same", "scalar", "row", "ones")
        if y == "same":
            other = self.pick(lambda s: s == shape)[0]
        elif y == "scalar":
            other = self.constant(np.float32(self.one_of(0, 1, 0.5, -2)))
        else:
            other = self.weight(shape[-1]) if y == "row" else self.constant(np.zeros(shape[-1]))
        pair = self.one_of((x, other), (other, x))
        self.add(self.node(self.one_of(*BINARY), *pair), shape)

    def grow_gelu(self):
        x, shape = self.pick()
        inner = self.node("Erf", self.node("Div", x, np.float32(math.sqrt(2))))
        half = self.node("Mul", x, np.float32(self.one_of(0.5, 0.5, 0.4)))
        self.add(self.node("Mul", half, self.node("Add", inner, np.float32(1))), shape)
        if self.draw(st.booleans()):
            self.add(inner, shape)

    def grow_silu(self):
        x, shape = self.pick()
        self.add(self.node("Mul", x, self.node("Sigmoid", x)), shape)

    def grow_linear(self):
        x, shape = self.pick(lambda s: len(s) == 3)
        size = self.one_of(6, 8)
        y = self.node("MatMul", x, self.weight(shape[-1], size))
        if self.draw(st.booleans()):
            y = self.node("Add", y, self.weight(size))
        self.add(y, (*shape[:-1], size))

    def grow_gemm(self):
        x, shape = self.pick(lambda s: len(s) == 3)
        flat = self.node("Reshape", x, np.asarray([-1, shape[-1]]))
        y = self.node("Gemm", flat, self.weight(6, shape[-1]), self.weight(6), transB=1)
        self.add(self.node("Reshape", y, np.asarray([-1, shape[1], 6])), (*shape[:-1], 6))

    def grow_transposes(self):
        x, shape = self.pick()
        inner = self.draw(st.permutations(range(1, len(shape))))
        self.add(
            self.node("Transpose", x, perm=[0, *inner]), (shape[0], *(shape[i] for i in inner))
        )

    def grow_reshape(self):
        x, shape = self.pick()
        total = math.prod(shape[1:])
        forms = (total,), (4, total // 4), (2, 2, total // 4), (total // 8, 8)
        new = self.one_of(*[s for s in forms if math.prod(s) == total])
        first = self.one_of(0, -1)
        self.add(self.node("Reshape", x, np.asarray([first, *new])), (shape[0], *new))

    def grow_slice(self):
        x, shape = self.pick(lambda s: max(s[1:]) > 1)
        axis = self.one_of(*[i for i in range(1, len(shape)) if shape[i] > 1])
        low = self.draw(st.integers(0, shape[axis] - 1))
        high = self.draw(st.integers(low + 1, shape[axis]))
        cut = [
            np.asarray([i]) for i in (low, self.one_of(high, high - shape[axis] or 2**62), axis)
        ]
        y = self.node("Slice", x, *cut)
        self.add(y, [high - low if i == axis else d for i, d in enumerate(shape)])

    def grow_split_and_concat(self):
        x, shape = self.pick(lambda s: s[-1] % 2 == 0)
        a, b = self.node("Split", x, outputs=2, axis=-1, num_outputs=2)
        pair = self.one_of((a, b), (b, a))
        self.add(self.node("Concat", *pair, axis=-1), shape)
        self.add(a, (*shape[:-1], shape[-1] // 2))

    def grow_norm(self):
        x, shape = self.pick()
        axes = np.asarray([-1])
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes))
        if self.one_of("layer", "rms") == "rms":
            centred = x
        square = self.node("Pow", centred, np.float32(2))
        root = self.node(
            "Sqrt", self.node("Add", self.node("ReduceMean", square, axes), np.float32(1e-3))
        )
        y = self.node("Div", centred, root)
        scaled = self.node("Mul", y, self.weight(shape[-1]))
        self.add(self.node("Add", scaled, self.weight(shape[-1])), shape)

    def grow_convolution(self):
        x, shape = self.pick(lambda s: len(s) == 4 and s[2] >= 3 and s[3] >= 3)
        channels = shape[1]
        y = self.node("Conv", x, self.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1])
        if self.draw(st.booleans()):
            self.add(y, shape)
        if self.draw(st.booleans()):
            stats = [self.weight(channels), self.weight(channels), self.weight(channels)]
            y = self.node(
                "BatchNormalization", y, *stats, np.abs(self.rng.standard_normal(channels)) + 0.5
            )
        if self.draw(st.booleans()):
            y = self.node("Add", y, self.pick(lambda s: s == shape)[0])
        self.add(self.node(self.one_of("Relu", "Sigmoid", "Identity"), y), shape)

    def grow_padded(self):
        x, shape = self.pick(lambda s: len(s) == 4 and s[2] >= 3 and s[3] >= 3)
        pads = [self.one_of(0, 1, 2) for _ in range(4)]
        wide = self.node("Pad", x, np.asarray([0, 0, *pads[:2], 0, 0, *pads[2:]]))
        if self.draw(st.booleans()):
            self.add(
                wide, (*shape[:2], shape[2] + pads[0] + pads[2], shape[3] + pads[1] + pads[3])
            )
        y = self.node("Conv", wide, self.weight(shape[1], shape[1], 3, 3))
        size = [n + pads[i] + pads[i + 2] - 2 for i, n in enumerate(shape[2:])]
        self.add(self.node(self.one_of("Relu", "Tanh", "Identity"), y), (*shape[:2], *size))

    def grow_rows(self):
        x, shape = self.pick(lambda s: len(s) == 3)
        width = shape[1] * shape[2]
        rows = self.node("Reshape", x, np.asarray([0, width]))
        if self.draw(st.booleans()):
            variance = np.abs(self.rng.standard_normal(width)) + 0.5
            stats = [self.weight(width) for _ in range(3)]
            rows = self.node("BatchNormalization", rows, *stats, variance)
        y = self.node("MatMul", rows, self.weight(width, 8))
        if self.draw(st.booleans()):
            y = self.node("Add", *self.one_of((y, self.weight(8)), (self.weight(8), y)))
        self.add(self.node("Reshape", y, np.asarray([0, 4, 2])), (shape[0], 4, 2))

    def grow_halves(self):
        x, shape = self.pick(lambda s: len(s) == 4 and s[3] % 2 == 0)
        a, b = self.node("Split", x, outputs=2, axis=-1, num_outputs=2)
        c, s = self.weight(shape[2], shape[3] // 2), self.weight(shape[2], shape[3] // 2)
        first = self.node("Sub", self.node("Mul", a, c), self.node("Mul", b, s))
        second = self.node("Add", self.node("Mul", c, b), self.node("Mul", self.one_of(a, b), s))
        self.add(self.node("Concat", first, second, axis=-1), shape)

    def grow_branches(self):
        x, shape = self.pick(lambda s: len(s) == 4 and s[2] >= 3 and s[3] >= 3)
        channels = shape[1]
        group = self.one_of(1, channels)
        width = channels // group
        y = self.node("Conv", x, self.weight(channels, width, 3, 3), pads=[1] * 4, group=group)
        kind = self.one_of("conv", "norm", "same")
        if kind == "conv":
            other = self.node("Conv", x, self.weight(channels, width, 1, 1), group=group)
        elif kind == "norm":
            stats = [self.weight(channels) for _ in range(3)]
            variance = np.abs(self.rng.standard_normal(channels)) + 0.5
            other = self.node("BatchNormalization", x, *stats, variance)
        else:
            other = x
        if self.draw(st.booleans()):
            self.add(y, shape)
        self.add(self.node(self.one_of("Add", "Sub"), *self.one_of((y, other), (other, y))), shape)

    def grow_attention(self):
        x, shape = self.pick(lambda s: len(s) == 3 and s[2] % 2 == 0)
        width = shape[2]
        heads = np.asarray([0, 0, 2, width // 2])
        q, k, v = (
            self.node("Reshape", self.node("MatMul", x, self.weight(width, width)), heads)
            for _ in range(3)
        )
        q, k, v = (
            self.node("Transpose", y, perm=perm)
            for y, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        scores = self.node("Mul", self.node("MatMul", q, k), np.float32(0.3))
        if self.draw(st.booleans()):
            mask = np.where(np.tri(shape[1], dtype=bool), 0, self.one_of(-1e9, -np.inf))
            scores = self.node("Add", scores, mask)
        weights = self.node("Softmax", scores, axis=-1)
        y = self.node("Transpose", self.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        self.add(self.node("Reshape", y, np.asarray([0, 0, width])), shape)

    def grow_shape_chain(self):
        x, shape = self.pick(lambda s: len(s) == 3)
        batch = self.node("Gather", self.node("Shape", x), np.asarray(0), axis=0)
        target = self.node(
            "Concat", self.node("Unsqueeze", batch, np.asarray([0])), np.asarray([-1]), axis=0
        )
        self.add(self.node("Reshape", x, target), (shape[0], shape[1] * shape[2]))

    def grow_branch(self):
        x, shape = self.pick()
        known = self.draw(st.booleans())
        total = self.node("ReduceSum", x, keepdims=0)
        condition = (
            self.constant(np.asarray(True))
            if known
            else self.node("Greater", total, np.float32(0))
        )
        bodies = {}
        for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
            inner = ir.node(op_type, [x], name=f"{name}{len(self.nodes)}")
            inner.outputs[0].name = f"{name}{len(self.nodes)}_out"
            bodies[name] = ir.Graph(
                [], list(inner.outputs), nodes=[inner], name=name, opset_imports={"": 20}
            )
        self.add(self.node("If", condition, **bodies), shape)

    def model(self):
        made = [v for v in self.values if v[0].producer() is not None]
        assume(made)
        chosen = {id(v): (v, s) for v, s in [made[-1], self.draw(st.sampled_from(made))]}
        outputs = []
        for value, shape in chosen.values():
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            outputs.append(value)
        graph = ir.Graph(
            self.inputs, outputs, nodes=self.nodes, initializers=self.initializers,
            opset_imports={"": 20, "com.microsoft": 1}, name="g",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


@st.composite
def models(draw):
    graph = Graph(draw)
    for _ in range(draw(st.integers(1, 9))):
        graph.step()
    return ir.to_proto(graph.model())


def feeds(model):
    return [feed_for(model, sizes, seed) for seed, sizes in enumerate(SIZES)]


def is_sound(model):
    """Whether results are numbers of a size at which float32 can be compared."""
    runtime = session(model, plain=True)
    results = [runtime.run(None, feed) for feed in feeds(model)]
    return all(
        np.isfinite(r).all() and np.abs(r).max(initial=0) < 1e4 for rs in results for r in rs
    )


QUIET = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
THOROUGH = settings(QUIET, max_examples=500)


def pipeline_holds(proto, target):
    before = ir.from_proto(proto)
    assume(is_sound(before))
    after, _ = run(ir.from_proto(proto), PIPELINES[target])
    check_same(before, after, feeds(before), rtol=2e-3, atol=2e-4)


def passes_hold(proto):
    before = ir.from_proto(proto)
    assume(is_sound(before))
    for pass_ in PASSES.values():
        result = pass_(ir.from_proto(proto))
        if result.modified:
            check_same(before, result.model, feeds(before), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("target", list(PIPELINES))
@QUIET
@given(models())
def test_pipelines_compute_the_same(target, proto):
    pipeline_holds(proto, target)


@QUIET
@given(models())
def test_each_pass_alone_computes_the_same(proto):
    passes_hold(proto)


@pytest.mark.slow
@pytest.mark.parametrize("target", list(PIPELINES))
@THOROUGH
@given(models())
def test_pipelines_compute_the_same_on_many_graphs(target, proto):
    pipeline_holds(proto, target)


@pytest.mark.slow
@THOROUGH
@given(models())
def test_each_pass_alone_computes_the_same_on_many_graphs(proto):
    passes_hold(proto)

"""What eager PyTorch code may do on the way to its result."""

from __future__ import annotations

import collections
import copy
import dataclasses
import threading
import time
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bridge
from exporters.pytorch.eager import run_eager
from exporters.pytorch.inputs import bind
from tests.script.harness import assert_same

X = torch.linspace(-2, 2, 12).view(3, 4)


def agree(function: Any, *args: Any, dynamic_shapes: Any = None, **options: Any) -> bridge.Program:
    program = bridge.export(function, args, dynamic_shapes=dynamic_shapes, **options)
    with torch.no_grad():
        expected = function(*copy.deepcopy(args))
    assert_same(program(*args), expected, rtol=1e-5, atol=1e-6, inputs=args)
    return program


# Things that happen below or beside plain calls


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        return x * x * x * scale

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x * x * gradient, None


class PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_autograd_functions_are_traced_through():
    agree(lambda x: Cube.apply(x, 2.0) + 1, X)
    agree(lambda x: PassThrough.apply(x) * 2, X)


def test_checkpoints_are_traced_through():
    layer = nn.Linear(4, 4).eval()
    agree(lambda x: checkpoint(lambda v: layer(v).relu(), x, use_reentrant=False) + x, X)


def test_autocast_casts_where_eager_does():
    layer = nn.Linear(4, 4).eval()

    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            z = (y.float() @ x.T).float()
        return z + x.sum()

    traced = bridge.export(f, X, verify=False)
    casts = [n for n in traced.model.graph if n.op_type == "Cast"]
    assert casts


@torch.library.custom_op("bridge_tests::scaled_softmax", mutates_args=())
def scaled_softmax(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(x * scale, -1)


def test_custom_operators_written_in_python_are_traced_through():
    agree(lambda x: scaled_softmax(x, 2.0) + torch.ops.bridge_tests.scaled_softmax(x, 0.5), X)


def test_modules_with_hooks_and_parametrizations():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)).eval()
    layer.register_forward_hook(lambda m, i, o: o * 2)
    layer.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    agree(layer, X)


# Structures


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    extras: dict[str, Any]


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Box:
    def __init__(self, value: torch.Tensor, note: str) -> None:
        self.value = value
        self.note = note


def test_nests_go_in_and_out():
    def f(batch, items, pair, box, *, scale=1.0):
        y = batch.x * scale + items["a"][0] - pair.second + box.value
        table = collections.OrderedDict(y=y, z=[y + 1, (y + 2, None, "text", 3)])
        return {"t": table, "pair": Pair(y, y * 2), "batch": Batch(y, {"k": y})}

    args = (Batch(X, {"m": X + 1}), {"a": [X, X]}, Pair(X, X + 3), Box(X, "note"))
    program = bridge.export(f, args, kwargs={"scale": 2.0})
    got, expected = program(*args, scale=2.0), f(*args, scale=2.0)
    assert type(got["t"]) is collections.OrderedDict
    assert isinstance(got["pair"], Pair)
    assert isinstance(got["batch"], Batch)
    assert got["t"]["z"][1][1:] == (None, "text", 3)
    torch.testing.assert_close(got["batch"].extras["k"], expected["batch"].extras["k"])
    torch.testing.assert_close(got["t"]["z"][1][0], expected["t"]["z"][1][0])


def test_input_names_come_from_the_signature():
    program = bridge.export(lambda x, pair: x + pair[0] * pair[1], (X, (X, X)))
    assert [i.name for i in program.model.graph.inputs] == ["x", "pair.0", "pair.1"]


def test_output_names_come_from_fields():
    program = bridge.export(lambda x: {"logits": x, "states": [x + 1, x + 2]}, X)
    assert [o.name for o in program.model.graph.outputs] == ["logits", "states.0", "states.1"]


def test_numbers_that_vary_between_examples_are_inputs():
    def f(x, n, scale, flag):
        return x * n + scale if flag else x

    program = bridge.export(f, (X, 2, 0.5, True), examples=[(X, 3, 1.5, True)])
    assert [i.name for i in program.model.graph.inputs] == ["x", "n", "scale"]
    torch.testing.assert_close(program(X, 7, 2.5, True), f(X, 7, 2.5, True))


def test_a_number_that_was_the_same_at_export_cannot_change():
    program = bridge.export(lambda x, n: x * n, (X, 2))
    with pytest.raises(bridge.FeedError, match="n"):
        program(X, 3)


def test_inputs_returned_as_they_are_and_results_returned_twice():
    agree(lambda x: (x, x, x + 1, x), X)


def test_constants_may_be_results():
    agree(lambda x: (x + 1, torch.arange(3), torch.tensor(2.0)), X)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models_are_exported_for_what_is_inside(wrap):
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
    program = bridge.export(wrap(model), (X,), dynamic_shapes=({0: "n"},))
    assert [v.name for v in program.model.graph.inputs] == ["input"]
    assert set(program.model.graph.initializers) == {"0.weight", "0.bias"}
    torch.testing.assert_close(program(X[:1]), model(X[:1]))


def test_compiled_functions_are_exported_for_what_is_inside():
    program = bridge.export(torch.compile(lambda x: x * 2), (X,))
    torch.testing.assert_close(program(X), X * 2)


def test_further_positional_and_keyword_arguments(tmp_path):
    def total(first, *others, scale=1.0, **named):
        return first * scale + sum(others) + named["last"] * 2

    path = tmp_path / "model.onnx"
    kwargs = {"scale": 2.0, "last": X + 3}
    program = bridge.export(total, (X, X + 1, X + 2), path, kwargs=kwargs)
    for run in (program, bridge.load(path)):
        torch.testing.assert_close(
            run(X, X + 1, X + 2, **kwargs), total(X, X + 1, X + 2, **kwargs)
        )


def test_lazy_parameters_are_refused():
    with pytest.raises(bridge.InputError, match="2 parameters of the model have no shape yet"):
        bridge.export(nn.Sequential(nn.LazyLinear(3)), (X,))


def test_tied_parameters_are_stored_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.out = nn.Linear(4, 10, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids):
            return self.out(self.embed(ids))

    program = agree(Tied().eval(), torch.tensor([[1, 2, 3]]))
    assert [n for n in program.model.graph.initializers if "weight" in n] == ["embed.weight"]


def test_parameters_keep_their_state_dict_names_and_memory():
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    program = agree(model, X)
    names = set(program.model.graph.initializers)
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= names
    held = program.model.graph.initializers["0.weight"].const_value.raw
    assert held.data_ptr() == model[0].weight.data_ptr()


def test_functions_over_modules_name_parameters_after_their_variable():
    encoder = nn.Linear(4, 64).eval()
    program = agree(lambda x: encoder(x) * 2, X)
    assert "encoder.weight" in program.model.graph.initializers


# Export leaves everything as it found it


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.cache = {}
        self.history = []
        self.last = None

    def forward(self, x):
        self.steps += 1
        self.mean.lerp_(x.mean(0), 0.1)
        self.cache["x"] = x
        self.history.append(x.shape[0])
        self.last = self.linear(x)
        return self.last + self.mean + self.steps


def test_attributes_buffers_and_caches_are_as_before():
    model = Restless().eval()
    before = copy.deepcopy(model.__dict__)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    bridge.export(model, X, dynamic_shapes={"x": {0: "n"}})
    assert model.cache == {}
    assert model.history == []
    assert model.last is None
    assert set(model.__dict__) == set(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_inputs_are_not_written_to():
    def f(x, box):
        x += 1
        box.value.mul_(2)
        box.note = "changed"
        return x + box.value

    x, box = X.clone(), Box(X.clone(), "note")
    bridge.export(f, (x, box))
    assert torch.equal(x, X)
    assert torch.equal(box.value, X)
    assert box.note == "note"


def test_torch_settings_are_as_before():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    torch.manual_seed(7)
    random, dtype, grad = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    bridge.export(model, X)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled() is grad
    assert not torch.compiler.is_exporting()
    assert not any(m.training for m in model.modules())


def test_a_verification_that_takes_too_long_leaves_gradients_enabled(monkeypatch):
    monkeypatch.setattr("bridge.verification._SECONDS", 0.1)
    monkeypatch.setattr("bridge.verification._TRACES", 0)

    def slow(x):
        time.sleep(0.2)
        return x + 1

    bridge.export(slow, X, dynamic_shapes=({0: "n"},))
    assert torch.is_grad_enabled()


def test_libraries_are_told_that_they_are_exported():
    seen = []

    def f(x):
        seen.append(torch.compiler.is_exporting())
        return x + 1

    bridge.export(f, X)
    assert all(seen[:-1])
    assert seen[-1] is False  # verification asks what eager code computes by itself


def test_a_traced_number_that_escapes_is_a_plain_one():
    kept = []

    def f(x):
        kept.extend([x.shape[0], x.shape[0] * 2, x.shape[0] / 2])
        return x * 2

    bridge.export(f, X, dynamic_shapes={"x": {0: "n"}})
    n, doubled, half = kept[:3]
    assert n + 1 == 4
    assert list(range(n)) == [0, 1, 2]
    assert doubled // 4 == 1
    assert half * 2 == 3.0
    assert {3: "found"}[n] == "found"
    assert str(n) == "3"
    assert copy.deepcopy(n) == 3


def test_exports_in_parallel_threads_do_not_disturb_each_other():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    results: dict[int, Any] = {}

    def run(index: int) -> None:
        x = torch.randn(index + 2, 4)
        program = bridge.export(model, x, dynamic_shapes=({0: "n"},))
        results[index] = (program(x), model(x).detach(), len(list(program.model.graph)))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for got, expected, nodes in results.values():
        torch.testing.assert_close(got, expected)
        assert nodes == 3


# State that forward writes to


def test_mutated_buffers_are_reported():
    program = bridge.export(Restless().eval(), X)
    assert {"steps", "mean"} <= set(program.report.mutated)


def test_mutated_buffers_become_inputs_and_outputs_on_request():
    model = Restless().eval()
    program = bridge.export(model, X, state="io")
    names = [i.name for i in program.model.graph.inputs]
    assert "mean" in names
    assert "steps" in names
    state = {"mean": torch.zeros(4), "steps": torch.zeros(())}
    feed = {"x": X}
    session = program.session()
    for _ in range(3):
        results = session.run({**feed, **state})
        state = {k: torch.as_tensor(results[f"{k}.out"]) for k in state}
    for _ in range(3):
        model(X)
    torch.testing.assert_close(state["mean"], model.mean)
    torch.testing.assert_close(state["steps"], model.steps)


# Train mode


def test_train_mode_warns():
    with pytest.warns(bridge.TrainModeWarning, match="model.eval"):
        bridge.export(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), X, verify=False)


def test_batch_norm_in_train_mode_normalises_by_the_batch():
    model = nn.BatchNorm1d(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = bridge.export(model, X)
    expected = F.batch_norm(X, None, None, model.weight, model.bias, training=True)
    torch.testing.assert_close(program(X), expected.detach())


# Random numbers


def test_random_numbers_are_drawn_at_run_time():
    program = bridge.export(lambda x: x + torch.rand(3, 4), X)
    assert not torch.equal(program(X), program(X))
    assert any("random" in w for w in program.report.warnings)


class _Writing(torch.nn.Module):
    """Writes to all that a module can write to: parameters, buffers, tensors outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 4, max_norm=0.5)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))
        self.outside = [torch.zeros(4)]
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.data.mul_(0.9)
        y = self.norm(self.table(x)) * self.scale
        y = torch.nn.functional.batch_norm(y, self.mean, self.variance, training=True)
        self.outside[0].add_(y.sum(0))
        return y + self.outside[0]


def test_what_forward_writes_to_is_as_it_was() -> None:
    model = _Writing()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.warns(bridge.TrainModeWarning):
        program = bridge.export(model, torch.arange(6), dynamic_shapes=({0: "n"},))
    assert bridge.check(model, program, (torch.arange(3, 9),))
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)
    assert not model.outside[0].any()


@pytest.mark.parametrize("call", [
    lambda x: torch.func.vmap(lambda row: row * 2)(x),
    lambda x: torch.func.grad(lambda y: (y * y).sum())(x),
    lambda x: (torch.nested.nested_tensor([x, x[:1]]) * 2).to_padded_tensor(0.0),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_eager_code_runs_whatever_its_tensors_are(call):
    x = torch.randn(2, 3)
    torch.testing.assert_close(run_eager(call, bind(call, (x,), None), [x]), call(x))


def bags(words: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return F.embedding_bag(words, torch.arange(40.0).view(20, 2), offsets, mode="sum")


def packed(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True).data * 2


def between(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(x, edges)


@pytest.mark.parametrize(
    ("function", "args", "sizes", "others"),
    [
        (bags, (torch.arange(11), torch.tensor([0, 4, 4, 9])), ({0: "words"}, {0: "n"}),
         (torch.arange(7), torch.tensor([0, 2, 6]))),
        (packed, (torch.randn(3, 5, 2), torch.tensor([5, 3, 1])), ({0: "n"}, {0: "n"}),
         (torch.randn(4, 5, 2), torch.tensor([5, 5, 2, 1]))),
        (between, (torch.randn(6), torch.tensor([-1.0, 0.0, 1.5])), ({0: "n"}, {0: "edges"}),
         (torch.randn(2), torch.tensor([-0.5, 0.5]))),
    ],
)  # fmt: skip
def test_inputs_in_order_are_so_in_other_sizes(function, args, sizes, others):
    program = agree(function, *args, dynamic_shapes=sizes)
    assert_same(program(*others), function(*others), rtol=1e-5, atol=1e-6, inputs=others)


class Windows(torch.nn.Module):
    """Windows of attention, of which a small image has one only."""

    def forward(self, x):
        for step in (4, 8, 16):
            y = x[..., ::step, ::step]
            y = torch.nn.functional.pad(y, (0, -y.shape[-1] % 7, 0, -y.shape[-2] % 7))
            y = y.reshape(*y.shape[:2], y.shape[2] // 7, 7, -1, 7)
            x = x + (y.mean() if y.shape[-2] == 1 else y.amax())
        return x


@pytest.mark.parametrize("slow", [5.0, 0.0], ids=["quick", "slow"])
def test_windows_of_larger_images_are_tried(monkeypatch, slow):
    monkeypatch.setattr("bridge.verification._SLOW", slow)
    model = Windows().eval()
    dynamic = ({0: "batch", 2: "height", 3: "width"},)
    program = bridge.export(model, (torch.rand(2, 1, 64, 64),), dynamic_shapes=dynamic)
    for size in ((3, 1, 128, 120), (1, 1, 224, 64)):
        x = torch.rand(size)
        torch.testing.assert_close(program(x), model(x))
    if not slow:  # what takes long is not tried with more images, too
        assert max(program.report.dynamic["batch"]) == 5

"""What libraries do in forward that a trace has to live with."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import bridge
from exporters.errors import UnsupportedOpError, WorldError

ROWS = {"x": {0: "rows"}}


class HooksInTheFirstRun(torch.nn.Module):
    """Collects hidden states with hooks that its first run adds."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        self.hooked = False
        self.seen = []

    def forward(self, x):
        if not self.hooked:
            for layer in self.layers:
                layer.register_forward_hook(
                    lambda _module, _args, result: self.seen.append(result)
                )
            self.hooked = True
        self.seen.clear()
        for layer in self.layers:
            x = layer(x)
        return torch.stack(self.seen)


def test_hooks_that_the_first_run_adds_are_taken_back():
    model = HooksInTheFirstRun().eval()
    program = bridge.export(model, torch.randn(2, 4), dynamic_shapes=ROWS)
    assert not model.hooked
    assert not any(layer._forward_hooks for layer in model.layers)
    x = torch.randn(5, 4)
    torch.testing.assert_close(program(x), model(x))


class AsksBeforeItAttends(torch.nn.Module):
    """``is_causal`` is the result of an ``and`` that depends on a size."""

    def __init__(self, *, causal):
        super().__init__()
        self.causal = causal

    def forward(self, x):
        if x.shape[0] > 4:  # differs between the worlds, so this function is compiled
            x = x * 2
        is_causal = x.shape[0] > 0 and self.causal
        x = x[None, None]
        return F.scaled_dot_product_attention(x, x, x, is_causal=is_causal)


def test_attention_takes_a_truth_value_that_is_known_after_all():
    for causal in (False, True):
        model = AsksBeforeItAttends(causal=causal).eval()
        program = bridge.export(model, torch.randn(3, 4), dynamic_shapes=ROWS)
        for rows in (1, 4, 9):
            x = torch.randn(rows, 4)
            torch.testing.assert_close(program(x), model(x))


def _count_of_kinds(x):
    seen = {}
    for v in x:
        seen[int(v)] = seen.get(int(v), 0) + 1  # a dict by data: no graph has one
    return torch.tensor(len(seen))


def test_a_model_that_cannot_be_traced_as_eager_code_is_traced_as_compiled_code():
    def kinds(x):
        if torch.compiler.is_compiling():
            return (x.sort().values.diff() != 0).sum() + 1
        return _count_of_kinds(x)

    x = torch.tensor([1, 2, 1, 3])
    program = bridge.export(kinds, x)
    assert "torch.compiler.is_compiling() is always True" in program.report.assumptions
    torch.testing.assert_close(program(x), kinds(x))
    assert not torch.compiler.is_compiling()


def test_a_model_that_cannot_be_traced_either_way_is_refused_as_eager_code():
    def kinds(x):
        return _count_of_kinds(x) + torch.compiler.is_compiling() * x.sort().values.numpy().max()

    with pytest.raises(bridge.DataDependentError, match="the hash of a number"):
        bridge.export(kinds, torch.tensor([1, 2, 1, 3]))


NAMED = {
    "qr": lambda x: torch.linalg.qr(x).Q,
    "slogdet": lambda x: torch.linalg.slogdet(x).logabsdet,
    "eigh": lambda x: torch.linalg.eigh(x + x.T).eigenvalues,
    "lu": lambda x: torch.linalg.lu(x).L,
    "cholesky_ex": lambda x: torch.linalg.cholesky_ex(x @ x.T).L,
    "median": lambda x: x.median(0).values,
    "cummax": lambda x: x.cummax(0).indices,
}


@pytest.mark.parametrize("name", NAMED)
def test_results_have_torchs_names(name):
    x = torch.randn(4, 4, generator=torch.manual_seed(0))
    torch.testing.assert_close(
        bridge.export(NAMED[name], x)(x), NAMED[name](x), rtol=1e-4, atol=1e-4
    )


def test_checks_of_what_only_run_time_knows_are_for_eager():
    def picked(x, count):
        n = count.item()
        torch._check(n >= 0)
        torch._check(x.shape[0] > 0, lambda: "no rows")
        return x * n

    program = bridge.export(picked, (torch.randn(2, 3), torch.tensor(4)), dynamic_shapes="auto")
    x = torch.randn(5, 3)
    torch.testing.assert_close(program(x, torch.tensor(7)), x * 7)


def test_code_written_for_symbolic_sizes_asks_every_world():
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    def scaled(x):
        return x if guard_or_false(x.shape[0] == 1) else x * 2

    program = bridge.export(scaled, torch.randn(3, 2), dynamic_shapes=ROWS)
    x = torch.randn(5, 2)
    torch.testing.assert_close(program(x), x * 2)


def test_a_number_of_dims_that_depends_on_sizes_is_told():
    with pytest.raises(WorldError, match="number of dims"):
        bridge.export(lambda x: x.squeeze(), torch.randn(3, 1), dynamic_shapes={"x": {1: "n"}})


class Tagged(torch.Tensor):
    """A class of the user's."""


WRAPPED = {
    "as_subclass": lambda x: x.as_subclass(Tagged) * 2,
    "back again": lambda x: (x * 2).as_subclass(Tagged).as_subclass(torch.Tensor) + 1,
    "Parameter": lambda x: torch.nn.Parameter(x * 3) - x,
    "written to": lambda x: _written_through(x * 1),
}


def _written_through(x):
    x.as_subclass(Tagged)[0] = 7
    return x


@pytest.mark.parametrize("name", WRAPPED)
def test_other_classes_of_tensors_are_followed(name):
    program = bridge.export(WRAPPED[name], torch.randn(2, 3), dynamic_shapes=ROWS)
    x = torch.randn(4, 3)
    torch.testing.assert_close(program(x), torch.Tensor(WRAPPED[name](x).detach()))


def test_sizes_by_name_leave_other_parameters_where_they_are():
    def turned(x):
        return torch.rot90(x, k=3, dims=(0, 1)), x.flip(dims=(1,)), x.roll(shifts=1, dims=0)

    x = torch.randn(2, 3)
    for got, wanted in zip(bridge.export(turned, x)(x), turned(x), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "call", [lambda x: x.view(torch.int32), lambda x: x.view(dtype=torch.int32)]
)
def test_reading_bits_as_another_type_is_refused(call):
    with pytest.raises(UnsupportedOpError, match="reinterprets no bits"):
        bridge.export(call, torch.randn(2, 3))


def test_modules_that_torch_loads_in_the_trace_find_its_functions_as_they_are():
    script = """
import sys, torch, bridge
attention = torch.nn.MultiheadAttention(8, 2).eval()
assert "torch._dynamo" not in sys.modules
bridge.export(lambda x: attention(x, x, x)[0], torch.randn(3, 2, 8), verify=False)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

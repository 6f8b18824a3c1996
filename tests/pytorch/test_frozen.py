"""What Python takes from a size without the tracer seeing it is found out, and told with its line."""

from __future__ import annotations

import pytest
import torch

import bridge
from exporters.errors import SpecialisationError, UnboundNameError, UnsupportedOpError, WorldError

ROWS = {"x": {0: "rows"}}
X = torch.arange(6.0).view(3, 2)


def bytes_of_length(x):
    return x + len(bytearray(x.shape[0]))


def hashed(x):
    return x + hash(x.shape[0])


@pytest.mark.parametrize("function", [bytes_of_length, hashed])
def test_a_frozen_size_names_its_line(function):
    with pytest.raises(SpecialisationError, match=r"frozen to the example's") as caught:
        bridge.export(function, X, dynamic_shapes=ROWS)
    assert caught.value.source.line == function.__code__.co_firstlineno + 1
    assert "bridge.script" not in caught.value.hint  # the function was compiled, to no avail


def test_a_call_that_fails_with_other_sizes_says_so():
    def frozen_reshape(x):
        return x.reshape(2 * len(bytearray(x.shape[0])))

    with pytest.raises(WorldError, match="reshape works with the example's sizes") as caught:
        bridge.export(frozen_reshape, X, dynamic_shapes=ROWS)
    assert "keep the number in torch" in caught.value.hint


def test_counting_in_python_is_compiled_when_a_call_fails():
    def counted(x):
        n = 0
        for _ in range(x.shape[0]):
            n += 1
        return x.reshape(n * 2)

    program = bridge.export(counted, X, dynamic_shapes=ROWS)
    assert program(torch.ones(5, 2)).shape == (10,)


def test_a_rank_that_depends_on_sizes_is_refused():
    with pytest.raises(
        WorldError, match=r"number of dims depends on the input's sizes: \[3, 2\], \[2\]"
    ):
        bridge.export(lambda x: x.squeeze() * 2, examples=[(X,), (X[:1],)])


def test_slices_that_start_at_a_loop_index():
    def columns(x):
        for i in range(x.shape[1]):
            x = x + x[:, i : i + 1]
        return x

    program = bridge.export(columns, X, dynamic_shapes={"x": {1: "columns"}})
    other = torch.arange(15.0).view(3, 5)
    torch.testing.assert_close(program(other), columns(other))


def test_a_frozen_comprehension_is_reported_by_its_function():
    def rows(x):
        return torch.stack([x[i] for i in list(range(len(bytearray(x.shape[0]))))])

    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(rows, X, dynamic_shapes=ROWS)
    assert "is not what runs" not in str(caught.value)


def test_local_names_bound_in_one_branch():
    def routed(x):
        if x.sum() > 0:
            h = x * 2
        return h + 1

    with pytest.raises(UnboundNameError, match="`h` is read, but only the `if` branch binds it"):
        bridge.export(routed, X)


def test_unsupported_calls_are_named_as_they_can_be_registered():
    with pytest.raises(UnsupportedOpError) as caught:
        bridge.export(lambda x: x.to_sparse().to_dense(), X)
    assert "@lowers(torch.ops.aten._to_sparse.default)" in caught.value.hint
    assert "closest" not in str(caught.value)  # nothing supported has a name like it


def test_all_unsupported_calls_are_in_one_report():
    def several(x):
        a = torch.nextafter(x, x + 1) if x.shape[0] == 3 else x
        b = torch.hash_tensor(x)
        return a, b.long() + torch.nextafter(x, x)[0, 0].long()

    with pytest.raises(UnsupportedOpError) as caught:
        bridge.export(several, X)
    told = str(caught.value)
    assert "2 functions have no ONNX lowering: torch.nextafter, torch.hash_tensor" in told
    assert told.count("at tests/pytorch/test_frozen.py") == 3
    assert "the closest supported call is torch." in told
    assert "@lowers(torch.nextafter)" in caught.value.hint


def test_what_nobody_reads_may_be_unsupported():
    def logged(x):
        torch.hash_tensor(x)
        dead = torch.nextafter(x, x + 1)
        dead += 1
        return x * 2

    program = bridge.export(logged, X)
    assert program.report.op_counts == {"Mul": 1}


def test_unsupported_writes_are_no_no_ops():
    @torch.library.custom_op("tests::double_in_place", mutates_args={"x"})
    def double_in_place(x: torch.Tensor) -> None:
        x.numpy()[...] *= 2

    def write(x):
        x = x + 0
        torch.ops.tests.double_in_place(x)
        return x

    with pytest.raises(bridge.ExportError):
        bridge.export(write, X)


def test_numbers_of_unsupported_calls_are_not_frozen():
    def ask(x):
        return x * torch.hash_tensor(x).item()

    with pytest.raises(UnsupportedOpError, match=r"torch\.hash_tensor"):
        bridge.export(ask, X)


def test_models_that_behave_otherwise_when_exported_are_reported():
    def moody(x):
        return {"calm": x + 1, "moody": x * 2 if torch.compiler.is_exporting() else x * 3}

    program = bridge.export(moody, X)
    (warning,) = program.report.warnings
    assert warning.startswith("moody: the model computes other values when")

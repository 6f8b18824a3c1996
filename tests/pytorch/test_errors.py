"""What users read when an export stops: the whole text, with place and remedy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import bridge

X = torch.arange(10.0).reshape(2, 5)
DIMS = {"x": {0: "batch", 1: "length"}}


def text_of(model, error, *args, **options):
    with pytest.raises(error) as caught:
        bridge.export(
            model, *([] if "examples" in options and not args else [args or (X,)]), **options
        )
    return str(caught.value)


def place(function, line, excerpt, name=None):
    """The lines of a message that say where; ``line`` counts from the ``def``."""
    number = function.__code__.co_firstlineno + line
    name = name or function.__name__
    return f"  at tests/pytorch/test_errors.py:{number} in {name}\n{excerpt}"


def loop_over_a_dim(x):
    y = x.new_zeros(x.shape[0])
    for i in range(x.shape[1]):
        y = y + x[:, i]
    return y


def bytes_of_a_dim(x):
    zeros = bytearray(x.shape[1])
    return x + len(zeros)


def root_of_a_dim(x):
    return x / math.sqrt(x.shape[1])


def integer_of_a_dim(x):
    return x[:, : int(x.shape[1] / 2)]


def branch_on_a_dim(x):
    if x.shape[1] > 6:
        return x * 2
    return x


def branch_on_data(x):
    if x.sum() > 0:
        return x * 2
    return x


def number_of_data(x):
    return x * int(x.sum())


@pytest.mark.parametrize(
    ("model", "error", "line", "excerpt", "message", "hint"),
    [
        (
            loop_over_a_dim, bridge.SpecialisationError, 2,
            "    for i in range(x.shape[1]):\n             ^^^^^^^^^^^^^^^^^",
            "Python took another way for other inputs than the example: a loop or a branch here was "
            "frozen to the example's size",
            "mark the function with @bridge.script, or write the loop as a whole-tensor operation",
        ),
        (
            bytes_of_a_dim, bridge.SpecialisationError, 2,
            "    return x + len(zeros)\n           ^^^^^^^^^^^^^^",
            "for other inputs than the example, the result of add (float32[4, 11]) has other values in "
            "the trace than in eager: a size or a value was frozen to the example's, here or before "
            "this line",
            "keep the number in torch: x.shape[i], its arithmetic and math.* of it are followed; strings, "
            "bytes and NumPy arrays that are made with it are not, or mark the function with @bridge.script",
        ),
        (
            root_of_a_dim, bridge.DisagreeingBranchError, 1,
            "    return x / math.sqrt(x.shape[1])\n               ^^^^^^^^^^^^^^^^^^^^^",
            "the worlds disagree on float() of `return x / math.sqrt(x.shape[1])`: 5.0, 11.0",
            "mark the function with @bridge.script, or keep the branch out of the exported function",
        ),
        (
            integer_of_a_dim, bridge.DisagreeingBranchError, 1,
            "    return x[:, : int(x.shape[1] / 2)]\n                  ^^^^^^^^^^^^^^^^^^^",
            "the worlds disagree on int() of `return x[:, : int(x.shape[1] / 2)]`: 2, 5",
            "mark the function with @bridge.script, or keep the branch out of the exported function",
        ),
        (
            branch_on_a_dim, bridge.DisagreeingBranchError, 1,
            "    if x.shape[1] > 6:\n       ^^^^^^^^^^^^^^",
            "the worlds disagree on the comparison in `if x.shape[1] > 6:`: False, True",
            "mark the function with @bridge.script, or keep the branch out of the exported function",
        ),
        (
            branch_on_data, bridge.DataDependentError, 1,
            "    if x.sum() > 0:\n       ^^^^^^^^^^^",
            "Python asks for the truth of `if x.sum() > 0:`, which depends on the input's values",
            "mark the function with @bridge.script, or use torch.where",
        ),
        (
            number_of_data, bridge.DisagreeingBranchError, 1,
            "    return x * int(x.sum())\n               ^^^^^^^^^^^^",
            "the worlds disagree on int() of `return x * int(x.sum())`: 45, 198",
            "mark the function with @bridge.script, or keep the branch out of the exported function",
        ),
    ],
)  # fmt: skip
def test_python_that_depends_on_sizes_or_values(model, error, line, excerpt, message, hint):
    text = text_of(model, error, dynamic_shapes=DIMS, script="explicit")
    anchor = f"docs/errors#{error.__name__.lower()}"
    assert text == f"{message}\n{place(model, line, excerpt)}\n\nhint: {hint}\n{anchor}"


@pytest.mark.parametrize(
    "model", [loop_over_a_dim, root_of_a_dim, integer_of_a_dim, branch_on_a_dim, branch_on_data]
)
def test_the_same_code_exports_when_functions_may_be_compiled(model):
    program = bridge.export(model, (X,), dynamic_shapes=DIMS)
    for x in (X, -X, torch.randn(3, 9), torch.randn(1, 1)):
        torch.testing.assert_close(program(x), model(x))


def through_numpy(x):
    return torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize("inside", [False, True])
def test_what_torchscript_traced(inside):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Linear(5, 2), X)
    model, name = (nn.ModuleDict({"a": traced}), "a") if inside else (traced, "Linear")
    told = "was made by torch.jit.trace: there is no Python code left to run\n\nhint: export the module that "
    text = text_of(model, bridge.UntraceableError)
    assert text.startswith(f"the module {name} {told}")


@pytest.mark.parametrize("make", [torch.jit.script, lambda f: torch.jit.trace(f, X)])
def test_torchscript_functions_are_exported(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function = make(frozen_by_a_constant)
    program = bridge.export(function, (X,))
    assert torch.equal(program(X), frozen_by_a_constant(X))


def test_tensors_that_leave_torch():
    excerpt = "    return torch.from_numpy(x.numpy() * 2)\n                            ^^^^^^^^^"
    assert text_of(through_numpy, bridge.UntraceableError) == (
        "Tensor.numpy() hands a traced tensor to code that the tracer cannot see\n"
        f"{place(through_numpy, 1, excerpt)}\n\n"
        "hint: stay in torch here, or compute this part outside of the exported function\n"
        "docs/errors#untraceableerror"
    )


def takes_numpy(x):
    return x.astype(np.float32)


def test_methods_that_only_numpy_has():
    text = text_of(takes_numpy, bridge.UntraceableError, np.ones(3))
    excerpt = "    return x.astype(np.float32)\n           ^^^^^^^^"
    assert text == (
        "the NumPy arrays of the example are torch tensors in the trace, of which this code raises "
        "AttributeError: 'Tensor' object has no attribute 'astype'\n"
        f"{place(takes_numpy, 1, excerpt)}\n\n"
        "hint: compute with torch, whose functions take NumPy's keywords too: x.sum(axis=0)\n"
        "docs/errors#untraceableerror"
    )


def counts_bytes(x):
    return x * 2, len(bytearray(x.shape[0]))


def test_numbers_that_are_returned_and_frozen():
    text = text_of(counts_bytes, bridge.SpecialisationError, X, dynamic_shapes=({0: "n"},))
    assert text == (
        "the model returns 2 for every input, eager code 4 for other inputs than the example\n\n"
        "hint: compute it from tensors, or leave it out of what the model returns\n"
        "docs/errors#specialisationerror"
    )


def frozen_reshape(x):
    return x.reshape(5 * len(bytearray(x.shape[0])))


def test_calls_that_fail_in_another_world():
    text = text_of(frozen_reshape, bridge.WorldError, X, dynamic_shapes=({0: "n"},))
    excerpt = "    return x.reshape(5 * len(bytearray(x.shape[0])))\n           " + "^" * 41
    assert text == (
        "torch.Tensor.reshape works with the example's sizes, and fails with others: shape '[10]' is "
        f"invalid for input of size 20\n{place(frozen_reshape, 1, excerpt)}\n\n"
        "hint: keep the number in torch: x.shape[i], its arithmetic and math.* of it are followed; strings, "
        "bytes and NumPy arrays that are made with it are not\n"
        "docs/errors#worlderror"
    )


def squeezed(x):
    return x.squeeze() * 2


def test_a_number_of_dims_that_depends_on_sizes():
    text = text_of(squeezed, bridge.WorldError, examples=[(X,), (X[:1],)])
    excerpt = "    return x.squeeze() * 2\n           ^^^^^^^^^^^"
    assert text == (
        "the number of dims depends on the input's sizes: [2, 5], [5]\n"
        f"{place(squeezed, 1, excerpt)}\n\n"
        "hint: name the dim to squeeze, or give an example whose dynamic dims are all above 1\n"
        "docs/errors#worlderror"
    )


def no_lowering(x):
    return torch.nextafter(x, x + 1)


def test_calls_without_a_lowering():
    text = text_of(no_lowering, bridge.UnsupportedOpError, X)
    excerpt = "    return torch.nextafter(x, x + 1)\n           ^^^^^^^^^^^^^^^^^^^^^^^^^"
    assert text.startswith(
        "no ONNX lowering for torch.nextafter(float32[2, 5], float32[2, 5])\n"
        f"{place(no_lowering, 1, excerpt)}\n"
    )
    assert text.endswith(
        "\n\nhint: register one with `@lowers(torch.nextafter)`, see docs/how-to/add-an-op\n"
        "docs/errors#unsupportedoperror"
    )


def functionalised(x):
    return torch.func.functionalize(torch.sin)(x)


def test_transforms_that_are_not_traced():
    text = text_of(functionalised, bridge.UntraceableError, X)
    excerpt = "    return torch.func.functionalize(torch.sin)(x)\n           " + "^" * 38
    assert text == (
        f"this transform of torch.func is not traced\n{place(functionalised, 1, excerpt)}\n\n"
        "hint: call vmap, grad, jvp, vjp, jacrev or jacfwd of torch.func inside of the exported function, or "
        "keep the transform out of it\ndocs/errors#untraceableerror"
    )


def frozen_batch(x):
    return x.view(2, -1).sum(1)


def frozen_by_a_constant(x):
    return x + torch.ones(2, 5)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"y": {0: "batch"}}, "dynamic_shapes names 'y'; the model's inputs are 'x'\n"),
        (
            {"x": {2: "batch"}},
            "dynamic_shapes names axis 2 of 'x', which has 2 dims: [2, 5]\n",
        ),
        (
            {"x": {0: "batch"}},
            "dim 'batch' is declared dynamic, but eager accepts only 2: RuntimeError: The size of "
            "tensor a (5) must match the size of tensor b (2) at non-singleton dimension 0\n\n"
            "hint: leave it out of dynamic_shapes, give dims that must be equal the same name, or pass "
            "examples= with sizes that the model accepts",
        ),
    ],
)
def test_dims_that_cannot_be_dynamic(dims, message):
    text = text_of(frozen_by_a_constant, bridge.DynamicShapeError, dynamic_shapes=dims)
    assert text == f"{message}\ndocs/errors#dynamicshapeerror"


def one_at_a_time(x, y):
    if x.shape[0] != 2 and y.shape[0] != 2:
        raise ValueError("both changed")
    return x.sum() + y.sum()


def first_of_two(inputs):
    return inputs["a"] + 1


NEST = {"a": X, "c": X}


@pytest.mark.parametrize(
    ("model", "args", "dims", "message"),
    [
        (
            frozen_batch, (X,), {"x": {0: torch.export.Dim("n", min=1, max=2)}},
            "dim 'n' is declared dynamic, but 2 is the only size above 1 between its bounds 1 and 2\n\n"
            "hint: widen its bounds, or leave it out of dynamic_shapes",
        ),
        (
            one_at_a_time, (X, X), {"x": {0: "n"}, "y": {0: "m"}},
            "eager accepts another size for each dynamic dim alone, but not for all at once: ValueError: "
            "both changed\n\nhint: pass examples=[...] with two sets of sizes that the model accepts",
        ),
        (
            first_of_two, (NEST,), {"inputs": {"b": {0: "n"}}},
            "dynamic_shapes names 'b' in 'inputs', which holds 'a', 'c'\n",
        ),
        (
            first_of_two, (NEST,), {"inputs": [{0: "n"}] * 3},
            "dynamic_shapes has 3 entries for 'inputs', which holds 2: 'a', 'c'\n",
        ),
        (
            first_of_two, (NEST,), {"inputs": "n"},
            "dynamic_shapes for 'inputs' is 'n'; it holds 'a', 'c'\n\n"
            "hint: name the dims of each tensor in it: {'a': {0: 'n'}}",
        ),
    ],
)  # fmt: skip
def test_declarations_of_dims_that_are_wrong(model, args, dims, message):
    text = text_of(model, bridge.DynamicShapeError, *args, dynamic_shapes=dims)
    assert text == f"{message}\ndocs/errors#dynamicshapeerror"


@pytest.mark.parametrize(
    ("model", "args", "options", "message"),
    [
        (
            frozen_batch, (X, X), {},
            "the arguments do not fit frozen_batch(x): too many positional arguments\n\n"
            "hint: give every input in args=(...) or kwargs={...}",
        ),
        (
            frozen_batch, (X,), {"kwargs": {"z": 3}},
            "the arguments do not fit frozen_batch(x): got an unexpected keyword argument 'z'\n\n"
            "hint: give every input in args=(...) or kwargs={...}",
        ),
        (frozen_batch, (X,), {"opset": 3}, "opset 3 is older than 17, the oldest supported\n"),
        (frozen_batch, (X,), {"script": "no"}, "script is 'no'; it is 'auto' or 'explicit'\n"),
        (frozen_batch, (X,), {"state": "no"}, "state is 'no'; it is 'fold' or 'io'\n"),
        (3, (X,), {}, "the model is 3 (int); it is an nn.Module or a function\n"),
        (
            frozen_batch, (X.to_sparse(),), {},
            "input 'x' is sparse (torch.sparse_coo); ONNX inputs are dense\n\nhint: pass x.to_dense()",
        ),
        (
            lambda x, y: x, (X, X.to("meta")), {},
            "the inputs are on several devices: cpu, meta\n\n"
            "hint: move the example inputs to the model's device",
        ),
        (
            first_of_two, (NEST,), {"examples": [({"a": X},)]},
            "the examples differ in structure: inputs.a, inputs.c and inputs.a\n\n"
            "hint: give examples of one structure, or export the model once for each",
        ),
        (
            nn.Linear(5, 2, device="meta"), (X,), {},
            "2 tensors of the model are on the meta device (first: 'weight'); they have no values\n\n"
            "hint: load the weights first, or model.to_empty(device='cpu') and fill them",
        ),
        (
            nn.Linear(5, 2), (X.to("meta"),), {},
            "the model is on cpu, the inputs are on meta\n\nhint: move one of them: model.to('meta')",
        ),
        (
            lambda x: None, (X,), {},
            "the model returns no tensor but None, so there is nothing to export\n\n"
            "hint: return a tensor, or a nest of tensors",
        ),
        (
            frozen_batch, (X,), {"output_names": ["a", "b"]},
            "output_names has 2 names; the model has 1 outputs\n",
        ),
        (
            frozen_batch, (X,), {"examples": [(torch.ones(3, 4, 5),)]},
            "the examples disagree on input 'x': torch.float32 of rank 2, torch.float32 of rank 3\n",
        ),
        (
            frozen_batch, (X,), {"examples": [(X,)], "dynamic_shapes": DIMS},
            "examples= and dynamic_shapes= both say which dims vary\n\n"
            "hint: leave dynamic_shapes out: the dims that differ between examples are dynamic",
        ),
    ],
)  # fmt: skip
def test_calls_that_are_wrong(model, args, options, message):
    text = text_of(model, bridge.InputError, *args, **options)
    assert text == f"{message}\ndocs/errors#inputerror"


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_inputs_of_a_dtype_that_onnx_lacks():
    text = text_of(frozen_batch, bridge.InputError, X.to(torch.complex32))
    assert text == (
        "input 'x' is torch.complex32, which ONNX does not have\n\n"
        "hint: pass it as another dtype, and convert it in the model: x.to(torch.complex32)\n"
        "docs/errors#inputerror"
    )


def test_examples_that_eager_refuses_are_named():
    weight = torch.ones(5, 4)
    text = text_of(
        lambda x, w: x @ w, bridge.InputError, X, weight, examples=[(torch.ones(2, 3), weight)]
    )
    assert text == (
        "eager code refuses example 2 (x [2, 3], w [5, 4]): RuntimeError: mat1 and mat2 shapes cannot be "
        "multiplied (2x3 and 5x4)\n\nhint: give examples that the model accepts\ndocs/errors#inputerror"
    )


def test_opsets_that_onnx_does_not_define():
    text = text_of(frozen_batch, bridge.InputError, opset=99)
    assert text.startswith("opset 99 is newer than ")


def test_eager_errors_are_the_users_own():
    text_of(lambda x: 1 / 0, ZeroDivisionError)


def test_train_mode_warns():
    with pytest.warns(bridge.TrainModeWarning) as caught:
        bridge.export(nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.0)), (X,))
    assert str(caught[0].message) == (
        "3 modules are in train mode (first: 'Sequential'): dropout and batch normalisation are exported "
        "as they train; call model.eval() first"
    )


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    missing = tmp_path / "missing" / "model.onnx"
    text = text_of(frozen_batch, bridge.ModelFileError, path=missing)
    assert text.startswith(f"cannot write {missing}: {missing.parent} is no folder\n\nhint: ")
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    text_of(frozen_batch, bridge.ModelFileError, path=folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.astype(np.float32),
        lambda x: np.sum(x, axis=0),
        lambda x: x[::-1],
        lambda x: np.random.rand(3) + x,
        np.sin,
    ],
    ids=["method", "reduction", "step", "operand", "ufunc"],
)
def test_numpy_functions_are_refused_by_name(function):
    with pytest.raises(bridge.UntraceableError, match=r"NumPy|__array__"):
        bridge.export(lambda x: function(x), (np.ones((4, 3)),))

"""The full text of refusals that need more than a program to reach: files, outputs, options."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch

import bridge
from tests.script.harness import T
from tests.script.messages import text

X = T([1.0, 2.0, 3.0])
MISMATCH = "give it one type, dtype and number of dims on both ways"


class Loaded(torch.nn.Module):
    def forward(self, x):
        return x * 2


class CallsLoaded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Loaded()), buffer)
        buffer.seek(0)
        self.inner = torch.jit.load(buffer)

    def forward(self, x):
        return self.inner(x)


def run_time_list(x):
    return [v for v in x if v > 0]


def maybe_none(x):
    return x if x.sum() > 100 else None


def test_source_that_is_not_available_is_told():
    names = {}
    exec("def made(x):\n    if x.sum() > 0:\n        return x\n    return -x\n", {}, names)
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(names["made"], T([1.0]))
    assert str(caught.value) == (
        "the source of made (<string>:1) is not available, so its control flow cannot be compiled\n"
        "\n"
        "hint: define the function in a file or a notebook cell, not in exec() or the plain prompt\n"
        "docs/errors#scripterror"
    )


def chooses_a_text(x):
    return x, "large" if x.sum() > 0 else "small"


@pytest.mark.parametrize(
    ("function", "told", "hint", "error"),
    [
        (run_time_list, "the result is a list whose length only run time knows; an output of a graph is "
                        "a tensor",
         "return torch.stack(items), or torch.cat(items) and the lengths", "untraceableerror"),
        (maybe_none, "the result is None for some inputs and a value for others; an output of a graph is "
                     "always there",
         "return an empty tensor, or a flag beside the tensor, instead of None", "branchmismatcherror"),
        (chooses_a_text, "the result[1] is one of several objects, chosen at run time: 'large', 'small'",
         "return a number that stands for it", "untraceableerror"),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)  # fmt: skip
def test_what_a_graph_cannot_return_is_told(function, told, hint, error):
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(function, T([1.0, 2.0, 3.0]))
    assert str(caught.value) == f"{told}\n\nhint: {hint}\ndocs/errors#{error}"


def test_scripted_modules_from_files_are_refused():
    with (
        pytest.warns(DeprecationWarning, match="torch.jit"),
        pytest.raises(bridge.ExportError) as caught,
    ):
        bridge.export(CallsLoaded().eval(), T([1.0, 2.0, 3.0]))
    assert str(caught.value) == text(
        CallsLoaded.forward,
        "the TorchScript module Loaded has no Python source: it was loaded from a file",
        1,
        "self.inner(x)",
        "export the module that it was scripted from",
        "UntraceableError",
    )


def test_a_file_that_changed_is_told(tmp_path):
    path = tmp_path / "changed.py"
    path.write_text("def f(x):\n    if x.sum() > 0:\n        return x\n    return -x\n")
    names = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    path.write_text("# f was here\n")
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(names["f"], T([1.0]))
    assert str(caught.value) == (
        f"the source of f ({path}:1) is not what runs: the file was changed, or the function was made by "
        "other code\n"
        "\n"
        "hint: import the module anew\n"
        "docs/errors#scripterror"
    )


def writes_outer_rows(x):
    table = torch.zeros(3, 2)
    for i in range(x.long().sum().item()):
        table[i % 3] += x[0]
    return table


def test_a_loop_whose_writes_stay_unknown_is_refused(monkeypatch):
    monkeypatch.setattr("exporters.tracing.loops._RECORDINGS", 1)
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(writes_outer_rows, T([1.0, 2.0, 3.0]))
    assert str(caught.value) == text(
        writes_outer_rows,
        "what this loop writes to is still not known after 1 recordings of its body",
        2,
        "range(x.long().sum().item())",
        "move what does not change out of the loop, or split the loop in two",
        "ScriptError",
    )


def returns_from_a_loop(x):
    for v in x:
        if v > 1:
            return v.long()
    return x.sum()


def returns_other_ranks(x):
    if x.sum() > 0:
        return x
    return x.sum()


def other_case(x):
    match int(x.sum()):
        case 6:
            z = x
        case _:
            z = x.sum()
    return z


def other_item_of_a_tuple(x):
    if x.sum() > 0:
        pair = (x, 2)
    else:
        pair = (x.sum(), 3)
    return pair[0]


def expression_of_other_rank(x):
    return x * 2 if x.sum() > 0 else x.sum()


def expression_that_cannot_be_traced(x):
    return x if x.sum() > 0 else x.reshape(7)


class Remembers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(3)

    def forward(self, x):
        if x.sum() > 0:
            self.last = x
        else:
            self.last = x.sum()
        return self.last


COUNT = 0


def keeps_a_global(x):
    global COUNT
    if x.sum() > 0:
        COUNT = COUNT + 1
    return x * COUNT


def sets_a_key_of_a_number(x):
    d = {1: x, 2: x * 2}
    d[int(x.sum())] = x * 3
    return d[1]


def counts_bits(x):
    return x * int(x.sum()).bit_length()


def changes_a_row(x):
    rows = [[0, 0] for _ in range(x.shape[0])]
    row = rows[0]
    row[0] = 5
    return torch.tensor(rows)


def writes_to_pieces(x):
    x = x * 1
    for piece in x.split(int(x.sum()) % 2 + 1):
        piece += 1
    return x


def calls_without_a_file(x):
    return eval("lambda t: t if t.sum() > 0 else -t")(x)


def compares_a_text(x):
    if len(f"{x.sum().item():.2f}") > 8:
        return x
    return -x


def cannot_differentiate(x):
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        loss = (y**2).sum()
        if loss > 0:
            loss.backward()
    return y.grad


@pytest.mark.parametrize(
    ("function", "told", "place", "code", "hint", "error"),
    [
        (returns_from_a_loop,
         "the returned value is int64[] after a `return` in the loop (line {3}) but float32[] after the "
         "loop's end (line {4})", 1, "for v in x:", MISMATCH, "BranchMismatchError"),
        (returns_other_ranks,
         "the returned value is float32[3] after the `if` branch (line {2}) but float32[] after the "
         "`else` branch (line {3})", 1, "x.sum() > 0", MISMATCH, "BranchMismatchError"),
        (other_case,
         "`z` is float32[3] after the `if` branch (line {3}) but float32[] after the `else` branch (line "
         "{5})", 2, "6", MISMATCH, "BranchMismatchError"),
        (other_item_of_a_tuple,
         "`pair[0]` is float32[3] after the `if` branch (line {2}) but float32[] after the `else` branch "
         "(line {4})", 1, "x.sum() > 0", MISMATCH, "BranchMismatchError"),
        (expression_of_other_rank,
         "this expression is float32[3] after the `if` branch but float32[] after the `else` branch",
         1, "x * 2 if x.sum() > 0 else x.sum()", MISMATCH, "BranchMismatchError"),
        (expression_that_cannot_be_traced,
         "the `else` branch, which no example takes, cannot be traced: RuntimeError: shape '[7]' is invalid "
         "for input of size 3", 1, "x if x.sum() > 0 else x.reshape(7)",
         "give an example that takes it with examples=[...]", "ScriptError"),
        (Remembers(),
         "`self.last` is float32[3] after the `if` branch (line {2}) but float32[] after the `else` branch "
         "(line {4})", (Remembers.forward, 1), "x.sum() > 0", MISMATCH, "BranchMismatchError"),
        (keeps_a_global,
         "for other inputs than the example, the result of mul (float32[3]) has other values in the trace "
         "than in eager: a size or a value was frozen to the example's, here or before this line",
         4, "x * COUNT",
         "`COUNT` is global, and a graph keeps nothing from one call to the next: take it as an input and "
         'return it, or keep it in a buffer and export with state="io"', "SpecialisationError"),
        (sets_a_key_of_a_number, "which keys this dict has depends on the input's values", 2,
         "d[int(x.sum())] = x * 3", "use a list, or a tensor indexed by the number: `counts[v] += 1`",
         "ScriptError"),
        (counts_bits,
         "Python asks for bit_length() of `return x * int(x.sum()).bit_length()`, which depends on the "
         "input's values", 1, "int(x.sum()).bit_length()",
         "compute it with torch functions or Python arithmetic", "DataDependentError"),
        (writes_to_pieces,
         "what is written to is one of a run-time number of pieces of another tensor, which the graph "
         "would not change", 3, "piece += 1",
         "write to x[start:end], or put the pieces together again with torch.cat", "UntraceableError"),
        (calls_without_a_file,
         "the source of <lambda> (<string>:1) is not available, so its control flow cannot be compiled",
         1, 'eval("lambda t: t if t.sum() > 0 else -t")(x)',
         "define the function in a file or a notebook cell, not in exec() or the plain prompt",
         "ScriptError"),
        (compares_a_text,
         "Python asks for a text that is made of a number in `if len(f\"{x.sum().item():.2f}\") > 8:`, which "
         "depends on the input's values", 1, 'len(f"{x.sum().item():.2f}")',
         "compare the number, not its text, and look things up by it: layers[n] of a list, values[n] of a "
         "tensor", "DataDependentError"),
        (cannot_differentiate,
         "torch cannot write down the derivatives that autograd is asked for here: "
         "GuardOnDataDependentSymNode: Could not guard on data-dependent expression Eq(u0, 1) (unhinted: "
         "Eq(u0, 1)).  (Size-like symbols: none)", 4, "loss > 0",
         "use torch.func.grad of a function without branches on its values, or keep training out of the "
         "exported model", "UntraceableError"),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)  # fmt: skip
def test_text(function, told, place, code, hint, error):
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(function, X)
    assert str(caught.value) == text(function, told, place, code, hint, error)
    assert type(caught.value).__name__ == error


@dataclasses.dataclass(frozen=True)
class Fixed:
    n: int


def changes_what_is_frozen(x):
    s = Fixed(0)
    s.n = 3
    return x * s.n


def test_what_eager_raises_is_told_of_the_line_that_did_it():
    with pytest.raises(dataclasses.FrozenInstanceError) as caught:
        bridge.export(changes_what_is_frozen, X)
    (note,) = caught.value.__notes__
    line = changes_what_is_frozen.__code__.co_firstlineno + 2
    assert note == (
        "eager code raises this for the example\n"
        f"  at tests/script/test_refusals.py:{line} in changes_what_is_frozen\n"
        "    s.n = 3\n"
        "    ^^^\n"
        "\n"
        "hint: call the model with these arguments until it runs, then export it"
    )


@bridge.script
def chooses(x):
    return "up" if x.sum() > 0 else "down"


def asks_what_was_chosen(x):
    return x * 2 if chooses(x) == "up" else -x


@bridge.script
def passes_on_what_was_chosen(x):
    return by_mode(x, "up" if x.sum() > 0 else "down")


def by_mode(x, mode):
    if mode == "up":
        return x
    return -x


@bridge.script
def gives_none(x):
    return takes_none(x, x if x.sum() > 0 else None)


def takes_none(x, mask):
    if mask is None:
        return -x
    return x + mask


def takes_a_number(x):
    y = x
    for _ in range(int(x[0])):
        y = y * 2
    return y


@pytest.mark.parametrize(
    ("function", "told", "place", "code", "hint"),
    [
        (asks_what_was_chosen,
         "what is returned here is another object for other inputs, and the caller asks_what_was_chosen is "
         "not compiled", (chooses, 2), 'return "up" if x.sum() > 0 else "down"',
         "mark asks_what_was_chosen with @bridge.script"),
        (passes_on_what_was_chosen,
         "what by_mode is given here is another object for other inputs, and it is not compiled", 2,
         'by_mode(x, "up" if x.sum() > 0 else "down")', "mark by_mode with @bridge.script"),
        (gives_none,
         "Python asks whether `mask` is None, which depends on the input's values", (takes_none, 1),
         "mask is None", "mark the function with @bridge.script, or pass a tensor in place of None"),
        (takes_a_number,
         "Python asks for int() of `for _ in range(int(x[0])):`, which depends on the input's values", 2,
         "int(x[0])", "mark the function with @bridge.script, or use torch.where"),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)  # fmt: skip
def test_what_has_to_be_marked(function, told, place, code, hint):
    with pytest.raises(bridge.DataDependentError) as caught:
        bridge.export(function, X, script="explicit")
    assert str(caught.value) == text(function, told, place, code, hint, "DataDependentError")


def test_rows_that_change_under_a_name_of_their_own_are_told():
    with pytest.raises(bridge.SpecialisationError) as caught:
        bridge.export(changes_a_row, X, dynamic_shapes=({0: "n"},))
    assert str(caught.value) == text(
        changes_a_row,
        "for other inputs than the example, the result of tensor (int64[3, 2]) has other values in the trace "
        "than in eager: a size or a value was frozen to the example's, here or before this line",
        4,
        "torch.tensor(rows)",
        "keep the number in torch: x.shape[i], its arithmetic and math.* of it are followed; strings, bytes "
        "and NumPy arrays that are made with it are not, nor are rows of a list that change under a name of "
        "their own",
        "SpecialisationError",
    )

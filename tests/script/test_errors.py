"""The full text of every refusal and every mismatch."""

from __future__ import annotations

import contextlib
import json
import math
from typing import NamedTuple

import pytest
import torch

import bridge
from tests.script.harness import T
from tests.script.messages import text


def other_dtype(x):
    if x.sum() > 0:
        y = x * 2
    else:
        y = x > 1
    return y


def other_rank(x):
    if x.sum() > 0:
        y = x.sum()
    else:
        y = x
    return y


def other_rank_in_a_loop(x):
    y = x
    for _ in range(x.long().sum().item()):
        y = y.unsqueeze(0)
    return y


def other_dtype_in_a_loop(x):
    y = x
    while y.sum() < 10:
        y = y.double() + 1
    return y


def tensor_or_tuple(x):
    return x if x.sum() > 0 else (x, x)


def key_of_one_branch(x):
    d = {}
    if x.sum() > 0:
        d["k"] = None
    return x if "k" in d else -x


def keys_taken_apart(x):
    d = {"a": x}
    if x.sum() > 0:
        d["k"] = x
    first, second = d.values()
    return first + second


def mixed_list(x):
    out = [x.sum()]
    for v in x:
        if v > 0:
            out.append(x)
    return out[-1]


def unbound(x):
    if x.sum() > 0:
        y = x * 2
    return y


def untraceable_branch(x):
    if x.sum() > 0:
        return x
    return x.reshape(7)


def untraceable_body(x):
    for _ in range((x > 100).long().sum().item()):
        x = x @ torch.ones(7, 7)
    return x


def generator(x):
    if x.sum() > 0:
        yield x
    yield -x


def delegating(x):
    if x.sum() > 0:
        yield from [x]


async def coroutine(x):
    if x.sum() > 0:
        return x
    return -x


def sums_a_generator(x):
    return sum(generator(x))


def sums_another_generator(x):
    return sum(delegating(x))


def awaits(x):
    with contextlib.closing(coroutine(x)) as running:
        running.send(None)


def tries(x):
    try:
        if x.sum() > 0:
            return x
    except ValueError:
        pass
    return -x


def tries_a_loop(x):
    try:
        for v in x:
            if v > 0:
                x = x + v
    finally:
        x = x * 2
    return x


def unmarked(x):
    if x.sum() > 0:
        return x
    return -x


def disagreeing(x):
    if x.shape[0] > 3:
        return x
    return -x


def keys_in_any_order(x):
    d = {}
    for v in x:
        if v > 0:
            d["pos"] = v
        else:
            d["neg"] = v
    for v in d.values():
        x = x * 2 + v
    return x


def compares_dicts(x):
    d = {"a": 1}
    if x.sum() > 0:
        d["b"] = 2
    return x if d == {"a": 1} else -x


def other_items(x):
    found = [v for v in x if v > 0]
    found.append(x)
    return found[-1]


def other_items_of_a_loop(x):
    found = [x.sum()]
    for v in x:
        found.append(x if len(found) > 9 else v)
    return found[-1]


def no_counterpart(x):
    return x * math.gamma(x.sum().item())


def one_by_one(x):
    return torch.block_diag([v for v in x if v > 0])


def tuples_counted(x):
    pairs = [(v, v * 2) for v in x.tolist()]
    return x * pairs.count((1.0, 2.0, 3.0))


def counted_after_a_branch(x):
    for name in ("weight", "bias"):
        if x.sum() > 0:
            options = {name: x}
    return options["bias"]


def row_of_known_length(x):
    table = [[0, 0] for _ in x]
    row = table[-1]
    row[0] = 1
    return torch.tensor(table)


def unpacked(x):
    a, b, c = [v for v in x if v > -9]
    return a + b + c


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def other_tuples(x):
    if x.sum() > 0:
        pair = Pair(x, x)
    else:
        pair = (x,)
    return pair[0]


def lists_of_lists_of_lists(x):
    n = x.shape[0]
    return len([[[0] * n for _ in range(n)] for _ in range(n)]) + x


def row_under_its_own_name(x):
    table = [[0] * x.shape[0] for _ in x]
    row = table[0]
    row[-1] = 1
    return torch.tensor(table)


def fills(found, x):
    for v in x:
        found.append(v)


def fills_what_it_is_given(x):
    found = json.loads("[]")
    fills(found, x)
    return torch.stack(found)


def takes_three(a, b, c):
    return a + b + c


def gives_items_one_by_one(x):
    return takes_three(*[v * 2 for v in x])


def breaks_out_of_an_iterator(x):
    for scale in iter(lambda: 1, None):
        x = x + scale
        if x.sum() > 50:
            break
    return x


def counts_by_key(x):
    counts = {}
    for v in x.long().tolist():
        if v in counts:
            counts[v] += 1
        else:
            counts[v] = 1
    return x.sum() + len(counts)


def collects_a_set(x):
    seen = set()
    for v in x.long().tolist():
        seen.add(v)
    return x + torch.tensor([i * v for i, v in enumerate(seen)]).sum()


def collects_tensors(x):
    seen = set()
    for v in x:
        seen.add(v)
    return x + len(seen)


def power(x, n):
    if n == 0:
        return x
    return x * power(x, n - 1)


def recurs(x):
    return power(x, x.long().max().item())


def repeats(x):
    found = []
    found.extend([2.0] * x.long().max().item())
    return x + len(found)


MISMATCH = "give it one type, dtype and number of dims on both ways"
ITEMS = "put items of one structure, dtype and number of dims into a list of run-time length"
EXAMPLE = "give an example that {} it with examples=[...]"
# function: where it is told (or another one), what, text under the caret, hint, page, options
CASES = {
    other_dtype: (
        "`y` is float32[3] after the `if` branch (line {2}) but bool[3] after the `else` branch (line {4})",
        1, "x.sum() > 0", MISMATCH, "BranchMismatchError",
    ),
    other_rank: (
        "`y` is float32[] after the `if` branch (line {2}) but float32[3] after the `else` branch (line {4})",
        1, "x.sum() > 0", MISMATCH, "BranchMismatchError",
    ),
    other_rank_in_a_loop: (
        "`y` is float32[3] after zero iterations but float32[1, 3] after an iteration (line {3})",
        2, "range(x.long().sum().item())", MISMATCH, "BranchMismatchError",
    ),
    other_dtype_in_a_loop: (
        "`y` is float32[3] after zero iterations but float64[3] after an iteration (line {3})",
        2, "y.sum() < 10", MISMATCH, "BranchMismatchError",
    ),
    tensor_or_tuple: (
        "this expression is float32[3] after the `if` branch but (float32[3], float32[3]) after the `else` "
        "branch",
        1, "x if x.sum() > 0 else (x, x)", MISMATCH, "BranchMismatchError",
    ),
    keys_in_any_order: (
        "in which order this dict has its keys depends on the input's values",
        7, "d.values()", "go through them in a certain order: `for key in sorted(d)`", "ScriptError",
    ),
    compares_dicts: (
        "which keys this dict has depends on the input's values",
        4, 'd == {"a": 1}', "compare what they hold: `a.get(key) == b.get(key)`", "ScriptError",
    ),
    other_tuples: (
        "`pair` is Pair(float32[3], float32[3]) after the `if` branch (line {2}) but (float32[3],) after "
        "the `else` branch (line {4})",
        1, "x.sum() > 0", MISMATCH, "BranchMismatchError",
    ),
    unbound: (
        "`y` is read, but only the `if` branch binds it",
        1, "x.sum() > 0", "bind y before the statement, or on both ways", "UnboundNameError",
    ),
    untraceable_branch: (
        "the `else` branch, which no example takes, cannot be traced: RuntimeError: shape '[7]' is "
        "invalid for input of size 3",
        1, "x.sum() > 0", EXAMPLE.format("takes"), "ScriptError",
    ),
    untraceable_body: (
        "the body of a loop that no example enters cannot be traced: RuntimeError: mat1 and mat2 "
        "shapes cannot be multiplied (1x3 and 7x7)",
        1, "range((x > 100).long().sum().item())", EXAMPLE.format("enters"), "ScriptError",
    ),
    sums_a_generator: (
        "`yield` cannot become part of a graph",
        (generator, 2), "yield x", "collect the items in a list and return it", "ScriptSyntaxError",
    ),
    sums_another_generator: (
        "`yield from` cannot become part of a graph",
        (delegating, 2), "yield from [x]", "collect the items in a list and return it",
        "ScriptSyntaxError",
    ),
    awaits: (
        "`async def coroutine` cannot become part of a graph",
        (coroutine, 0), "async def coroutine(x):",
        "export the function that does the computing, not the one that waits", "ScriptSyntaxError",
    ),
    tries: (
        "this depends on the input inside of the `try` of line {1}; a graph raises no exceptions",
        2, "x.sum() > 0", "move the branch or loop out of the try statement", "ScriptError",
    ),
    key_of_one_branch: (
        "`d['k']` is None after the `if` branch (line {3}) but missing after the `else` branch",
        2, "x.sum() > 0", "set it on both ways, to None on the one without it",
        "BranchMismatchError",
    ),
    keys_taken_apart: (
        "which keys this dict has depends on the input's values",
        4, "first, second", "ask for each by its name: `d.get(key)`, `key in d`, or pass it on as **d",
        "ScriptError",
    ),
    mixed_list: (
        "the items of `out` are float32[] and float32[3]",
        3, "v > 0", ITEMS, "BranchMismatchError",
    ),
    other_items: (
        "the list holds float32[], the new item is float32[3]",
        2, "found.append(x)", "put items of one structure, dtype and number of dims into the list",
        "BranchMismatchError",
    ),
    no_counterpart: (
        "math.gamma of a number that only run time knows has no counterpart in the graph",
        1, "math.gamma(x.sum().item())", "compute it with torch functions or Python arithmetic",
        "UntraceableError",
    ),
    one_by_one: (
        "block_diag takes the items of a list whose length depends on data one by one",
        1, "torch.block_diag([v for v in x if v > 0])",
        "join the list with torch.stack or torch.cat first", "UntraceableError",
    ),
    unpacked: (
        "Python asks for len() of the list in `a, b, c = [v for v in x if v > -9]`, which depends on the "
        "input's values",
        1, "a, b, c", "loop over it: `for x in items: found.append(x)`", "DataDependentError",
    ),
    tries_a_loop: (
        "this depends on the input inside of the `try` of line {1}; a graph raises no exceptions",
        2, "x", "move the branch or loop out of the try statement", "ScriptError",
    ),
    counts_by_key: (
        "which keys this dict has depends on the input's values",
        3, "v in counts", "use a list, or a tensor indexed by the number: `counts[v] += 1`",
        "ScriptError",
    ),
    collects_a_set: (
        "in which order this set has its items depends on the input's values",
        4, "enumerate(seen)", "go through them in a certain order: `for x in sorted(s)`", "ScriptError",
    ),
    collects_tensors: (
        "a set tells tensors apart by identity, not by their values",
        3, "seen.add(v)", "put numbers into it: `s.add(x.item())`", "ScriptError",
    ),
    recurs: (
        "the `else` branch calls its function again without end: how deep it recurs depends on the "
        "input's values",
        (power, 1), "n == 0",
        "write a loop, with a list for what waits to be done, or pass the most calls that may follow "
        "as a plain number and stop at 0", "ScriptError",
    ),
    lists_of_lists_of_lists: (
        "the items of `the comprehension` are lists of lists or of tensors of several sizes, and only "
        "run time knows how long they are",
        2, "[[[0] * n for _ in range(n)] for _ in range(n)]",
        "use one list, or a tensor in its place: torch.zeros(rows, columns)", "BranchMismatchError",
    ),
    row_under_its_own_name: (
        "this list is an item of another list, which only run time knows, and is changed under a name "
        "of its own",
        3, "row[-1]", "change it in its place: rows[i].append(x), rows[i][j] = x", "ScriptError",
    ),
    row_of_known_length: (
        "Python took another way for other inputs than the example: a loop or a branch here was frozen "
        "to the example's size, although the function is compiled",
        1, "[[0, 0] for _ in x]",
        "its loops, branches and math.* are followed; what changes under another name than that of the "
        "list it is in, and what other libraries keep, is not", "ScriptError",
    ),
    tuples_counted: (
        "== takes tensors or numbers, and the items of the list are containers",
        2, "pairs.count((1.0, 2.0, 3.0))",
        "take the tensors out first: [item[0] for item in items]", "UntraceableError",
    ),
    fills_what_it_is_given: (
        "the list `found` changes its length here, and is reached through a name that this function "
        "does not own",
        (fills, 1), "x", "make the list in the function that fills it", "BranchMismatchError",
    ),
    gives_items_one_by_one: (
        "`takes_three` is given the items of a list one by one, and only run time knows how many",
        1, "takes_three(*[v * 2 for v in x])", "let takes_three take the list itself, or *args",
        "UntraceableError",
    ),
    breaks_out_of_an_iterator: (
        "this loop ends by a `break` that depends on the input, and its iterator goes on for more than "
        "4 items",
        1, "iter(lambda: 1, None)",
        "loop over a range, a list, a tensor or itertools.count(), or write `while`", "ScriptError",
    ),
    unmarked: (
        "Python asks for the truth of `if x.sum() > 0:`, which depends on the input's values",
        1, "x.sum() > 0", "mark the function with @bridge.script, or use torch.where",
        "DataDependentError",
    ),
    disagreeing: (
        "the worlds disagree on the comparison in `if x.shape[0] > 3:`: False, True",
        1, "x.shape[0] > 3",
        "mark the function with @bridge.script, or keep the branch out of the exported function",
        "DisagreeingBranchError",
    ),
}  # fmt: skip
EVERY_SIZE = {"dynamic_shapes": ({0: "n"},)}
OPTIONS = {
    tries_a_loop: EVERY_SIZE, counts_by_key: EVERY_SIZE, collects_a_set: EVERY_SIZE,
    collects_tensors: EVERY_SIZE, recurs: EVERY_SIZE, lists_of_lists_of_lists: EVERY_SIZE,
    row_under_its_own_name: EVERY_SIZE,
    row_of_known_length: EVERY_SIZE, tuples_counted: EVERY_SIZE, gives_items_one_by_one: EVERY_SIZE,
    fills_what_it_is_given: EVERY_SIZE, breaks_out_of_an_iterator: {"unroll_limit": 4},
    unmarked: {"script": "explicit"}, disagreeing: EVERY_SIZE | {"script": "explicit"},
}  # fmt: skip


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_text(function):
    with pytest.raises(bridge.ExportError) as caught:
        bridge.export(function, T([1.0, 2.0, 3.0]), **OPTIONS.get(function, {}))
    assert str(caught.value) == text(function, *CASES[function])
    assert type(caught.value).__name__ == CASES[function][-1]

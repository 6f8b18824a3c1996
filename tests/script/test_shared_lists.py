"""Lists that several names, functions or objects hold, grown or emptied by any of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch

from tests.script.harness import agree
from tests.script.language import OR_NONE, Programs

program = Programs(OR_NONE)


def fill(found, x):
    for v in x:
        if v > 1:
            found.append(v)


def fill_while(found, x):
    k = 0
    while k < x.sum():
        found.append(x.sum())
        k += 1


def drop(found):
    while len(found) > 1:
        found.pop()


def above_one(x):
    return [v for v in x if v > 1]


@program
def filled_by_a_function(x):
    found = []
    fill(found, x)
    fill(found, x * 2)
    return sum(found) + len(found) + x.sum()


@program
def filled_further_by_a_function(x):
    found = [v for v in x if v > 0]
    fill(found, x)
    fill_while(found, x)
    return x.sum() + len(found) + sum(found)


@program
def emptied_by_a_function(x):
    found = [v for v in x if v > 0]
    drop(found)
    return x.sum() + len(found)


@program
def filled_by_a_closure(x):
    found = []

    def add(v):
        if v > 1:
            found.append(v)

    for v in x:
        add(v)
    return x.sum() + len(found)


@program
def fresh_in_each_iteration(x):
    counts = []
    for v in x:
        row = []
        fill(row, x - v)
        counts.append(len(row))
    return x.sum() + sum(counts)


@program
def under_two_names(x):
    found = [x.sum()]
    other, places = found, {"found": found}
    for v in x:
        found.append(v)
    kept = [v for v in x if v > 0]
    alias = kept
    for v in x:
        kept.append(v)
    return x.sum() + len(other) + len(places["found"]) + len(alias)


@program
def exchanged(x):
    a, b = [x.sum()], []
    for v in x:
        b.append(v)
        a, b = b, a
    return x.sum() + len(a) * 10 + len(b)


@program
def set_on_one_way_and_grown_on_the_other(x):
    a = [x.sum(), x.sum() * 2]
    if x.sum() > 3:
        a[0] = x.max()
    else:
        a.append(x.sum() * 3)
    for v in x:
        if v > 1:
            a[1] = v
        else:
            a.append(v)
    return torch.stack(a)


@program
def extended_by_what_a_function_returns(x):
    found = [x.sum()]
    found.extend(above_one(x))
    found += above_one(x * 2)
    found.extend(v for v in x if v > 2)
    found.extend(x)
    return torch.stack(found), torch.stack([x.sum()] + above_one(x) + [x.sum()])


@program
def extended_on_one_way(x):
    found = [x.sum()]
    if x.sum() > 4:
        found.extend(above_one(x))
    else:
        found += [x.sum() * 2]
    for v in x:
        found.extend(above_one(x - v))
    return torch.stack(found)


@program
def taken_out_at_a_run_time_place(x):
    waiting = [x.sum(), x.sum() * 2, x.sum() - 1]
    place = int(x.sum() > 3)
    first = waiting.pop(place)
    waiting.insert(place, first * 10)
    del waiting[place - 1]
    return torch.stack(waiting)


class Buffer:
    def __init__(self):
        self.items = []

    def add(self, v):
        self.items.append(v)


@program
def of_an_object(x):
    buffer = Buffer()
    items = buffer.items
    for v in x:
        if v > 1:
            buffer.add(v)
    return x.sum() + sum(buffer.items) + len(items)


@program
def asked_for_their_type(x):
    known, found, n = [1, 2], [], 0
    for v in x:
        if v > 1:
            found.append(v)
            n += 1
    kinds = {list: 1.0, int: 10.0, tuple: 100.0}
    total = sum(kinds[type(y)] for y in (known, found, n, len(found), (1,)))
    if type(found) is list and type(n) in (int, float):
        total += 0.5
    return x.sum() + total, f"{known}" == "[1, 2]"


@program
def of_a_tree(x):
    total = x.sum()
    while total > 1:
        total = total / 2
    leaves = [total, [x.sum(), (total, {"a": [total]})]]
    doubled = torch.utils._pytree.tree_map(lambda leaf: leaf * 2, leaves)
    return torch.stack(torch.utils._pytree.tree_leaves(doubled))


@program
def beside_an_empty_list(x):
    waiting, total = [], x.sum()
    for a, b in zip(waiting[:3], x, strict=False):
        total = total + a * b
    for a, b in zip(x, waiting, strict=False):
        total = total + a * b
    return total


@dataclass
class Item:
    v: torch.Tensor
    n: int = 0


@program
def the_last_item_counts(x):
    items = [Item(x.sum())]
    for v in x:
        if v > 0:
            items.append(Item(v))
        else:
            items[-1].n += 1
    return torch.tensor([item.n for item in items])


@program
def an_item_more_or_another_item_changed(x):
    items = [Item(x.sum()), Item(x.sum() * 2)]
    if x.sum() > 4:
        items.append(Item(x.sum() * 3))
        items[0].n = 5
    else:
        items[1].n = 7
        items[1].v = items[1].v - 1
    return torch.tensor([item.n for item in items]), torch.stack([item.v for item in items])


@program
def an_object_replaced_or_changed(x):
    state = {"here": Item(x.sum()), "before": None}
    for v in x:
        if v > 0:
            state["before"] = state["here"]
            state["here"] = Item(v)
        else:
            state["here"].n += 1
    out = state["here"].v + state["here"].n
    if state["before"] is not None:
        out = out + state["before"].v * 10
    return out


test_one_way, test_every_way = program.tests()


def kinds_listed(x):
    by_kind = defaultdict(list)
    for v in x:
        if v > 0:
            by_kind["pos"].append(v)
        else:
            by_kind["neg"].append(v)
    return x.sum() + len(by_kind["pos"]) * 10 + len(by_kind["neg"])


def kinds_listed_by_a_chosen_key(x):
    by_kind = defaultdict(list)
    for v in x:
        by_kind["pos" if v > 0 else "neg"].append(v)
    return x.sum() + len(by_kind["pos"]) * 10 + sum(by_kind["neg"])


def numbers_of_items(x):
    return the_last_item_counts(x).sum() + an_item_more_or_another_item_changed(x)[0].sum()


@pytest.mark.parametrize(
    "function", [kinds_listed, kinds_listed_by_a_chosen_key, numbers_of_items]
)
def test_other_values_of_the_same_size(function):
    inputs = [(torch.tensor(v),) for v in ([3.0, 1.0], [-1.0, 3.5], [-3.0, -1.0], [2.0, -1.0])]
    agree(function, inputs[:1], inputs[1:])

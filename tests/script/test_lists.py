"""Lists that grow, shrink and are read while only run time knows how often."""

from __future__ import annotations

import pytest
import torch

from tests.script.harness import T, agree

VECTORS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5]),),
    (T([0.0, 9.0, -1.0, 2.0, 5.0]),),
    (T([-3.0]),),
]
MATRICES = [
    (torch.arange(6.0).view(3, 2),),
    (torch.arange(10.0).view(5, 2) - 4,),
    (torch.ones(1, 2),),
]


def append_and_stack(x):
    out = []
    for row in x:
        out.append(row * 2)
    return torch.stack(out)


def append_and_stack_last(x):
    out = []
    h = torch.zeros(2)
    for row in x:
        h = torch.tanh(h + row)
        out.append(h)
    return torch.stack(out, dim=-1), h


def append_and_cat(x):
    out = [x[:1] * 0]
    for row in x:
        out.append(row.unsqueeze(0))
    return torch.cat(out)


def append_two(x):
    out = []
    for row in x:
        out.append(row)
        out.append(-row)
    return torch.stack(out)


def two_lists(x):
    a, b = [], []
    for row in x:
        a.append(row.sum())
        b += [row.max()]
    return torch.stack(a), torch.stack(b)


def list_of_numbers(x):
    found = []
    for row in x:
        found.append(row.argmax().item())
    return torch.tensor(found)


def length_after(x):
    out = []
    for row in x:
        out.append(row)
    return len(out), torch.stack(out).sum()


def last_item(x):
    out = []
    for row in x:
        out.append(row)
    return out[-1], out[0]


def reads_the_last(x):
    out = [x[0]]
    for row in x:
        out.append(out[-1] * 0.5 + row)
    return torch.stack(out)


def conditional_append(x):
    kept = []
    for value in x:
        if value > 0:
            kept.append(value)
    return torch.stack(kept) if len(kept) > 0 else x[:0]


def ragged(x):
    parts = []
    for i in range(x.shape[0]):
        parts.append(x[: i + 1])
    return torch.cat(parts)


def stack_machine(x):
    todo = [x.sum()]
    total = torch.zeros(())
    steps = 0
    while len(todo) > 0 and steps < 20:
        item = todo.pop()
        total = total + item
        if item > 4:
            todo.append(item / 2)
            todo.append(item / 3)
        steps += 1
    return total, steps


def concatenates_lists(x):
    out = []
    for row in x:
        out = out + [row * 3]
    return torch.stack(out)


def extends(x):
    out = []
    for row in x:
        out.extend([row, row + 1])
    return torch.stack(out)


def comprehension(x):
    return torch.stack([row * i for i, row in enumerate(x)])


def filtered_comprehension(x):
    big = [v * 2 for v in x if v > 0]
    return len(big), sum(big, torch.zeros(()))


def nested_comprehension(x):
    return torch.stack([a * b for a in x for b in x])


def generator_sum(x):
    return sum(v * v for v in x)


def generator_any_all(x):
    return any(v > 3 for v in x), all(v > -5 for v in x)


def iterates_a_filled_list(x):
    out = []
    for row in x:
        out.append(row * 2)
    total = torch.zeros(())
    for item in out:
        total = total + item.sum()
    return total


def list_in_attribute_of_dict(x):
    store = {"rows": []}
    for row in x:
        store["rows"].append(row + 1)
    return torch.stack(store["rows"])


def sets_an_item(x):
    out = []
    for row in x:
        out.append(row)
    out[0] = out[0] * 100
    return torch.stack(out)


def run_time_index_of_a_list(x):
    options = [x * 2, x + 1, x - 1]
    which = x.argmax().item() % 3
    return options[which]


def run_time_index_of_numbers(x):
    weights = [0.5, 2.0, 4.0]
    return x * weights[x.argmax().item() % 3]


def run_time_item_assignment(x):
    slots = [x * 0, x * 0]
    slots[x.argmax().item() % 2] = x
    return slots


def returns_a_list(x):
    out = []
    for row in x:
        out.append(row * 2)
    return torch.stack(out).unbind(1)


def unbinds_columns(x):
    h = torch.zeros(x.shape[1])
    for row in x.unbind():
        h = torch.tanh(h + row)
    return h, torch.stack([c * 2 for c in torch.unbind(x.t(), dim=-1)])


def splits_in_pairs(x):
    total = 0
    for pair in x.split(2):
        total = total + pair.sum(0) * pair.shape[0]
    return total, len(x.split(2))


MATRIX_PROGRAMS = [
    append_and_stack, append_and_stack_last, append_and_cat, append_two, two_lists,
    list_of_numbers, length_after, last_item, reads_the_last, concatenates_lists, extends,
    comprehension, nested_comprehension, iterates_a_filled_list, list_in_attribute_of_dict,
    sets_an_item, returns_a_list, unbinds_columns, splits_in_pairs,
]  # fmt: skip
VECTOR_PROGRAMS = [
    conditional_append, ragged, stack_machine, filtered_comprehension, generator_sum,
    generator_any_all, run_time_index_of_a_list, run_time_index_of_numbers,
    run_time_item_assignment,
]  # fmt: skip


@pytest.mark.parametrize("program", MATRIX_PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_on_matrices(program):
    agree(program, [MATRICES[0]], MATRICES[1:], dynamic_shapes={"x": {0: "n"}})


@pytest.mark.parametrize("program", VECTOR_PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_on_vectors(program):
    agree(program, [VECTORS[0]], VECTORS[1:], dynamic_shapes={"x": {0: "n"}})


def test_lists_that_are_only_appended_to_are_scan_outputs():
    program = agree(append_and_stack, [MATRICES[0]], dynamic_shapes={"x": {0: "n"}})
    assert not any("Sequence" in op for op in program.report.op_counts)


def number_that_becomes_rows(x):
    total = 0
    for row in x:
        total = total + row.relu()
    return total


def test_a_number_becomes_an_array_of_other_sizes_than_the_examples():
    sizes = {"x": {0: "length", 1: "batch"}}
    others = [(torch.randn(n, b, 3),) for n, b in ((1, 1), (7, 2), (3, 9))]
    agree(number_that_becomes_rows, [(torch.randn(4, 5, 3),)], others, dynamic_shapes=sizes)

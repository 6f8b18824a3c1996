"""What a loop's body costs on every iteration: few nodes, and none that need not be there."""

from __future__ import annotations

import collections

import torch

from tests.script.harness import T, agree


def body_of(program, op_type="Loop"):
    """The op types in the innermost body of the first loop."""
    graph = program.model.graph
    while True:
        inner = [n for n in graph if n.op_type == op_type]
        if not inner:
            return collections.Counter(n.op_type for n in graph)
        graph = inner[0].attributes["body"].as_graph()


def table(a, b):
    d = torch.zeros(len(a) + 1, len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = d[i - 1, j - 1] + a[i - 1] * b[j - 1]
    return d


def test_indexes_are_computed_once_and_outside():
    sizes = ({0: "n"}, {0: "m"})
    others = [(torch.rand(1), torch.rand(6)), (torch.rand(0), torch.rand(2))]
    program = agree(table, [(torch.rand(3), torch.rand(4))], others, dynamic_shapes=sizes)
    body = body_of(program)
    assert "Sub" not in body  # (i + 1) - 1 is i
    assert body["Add"] == 2  # j + 1, and the sum
    assert sum(body.values()) <= 11


def write_rows(x):
    y = torch.zeros_like(x)
    for i in range(x.shape[0]):
        y[i] = x[i] * 2
    return y


def test_a_row_is_written_by_one_node():
    program = agree(write_rows, [(torch.rand(3, 2),)], [(torch.rand(7, 2),)],
                    dynamic_shapes=({0: "n"},))  # fmt: skip
    assert body_of(program) == {"Gather": 1, "Mul": 1, "Unsqueeze": 1, "ScatterND": 1}


def unlike(x):
    count = 0
    previous = 0
    for token in x:
        if token != previous and token != 9:
            count += int(token)
        previous = token
    return torch.tensor(count)


def test_negations_of_a_condition_swap_the_branches():
    program = agree(
        unlike, [(T([1, 1, 2]),)], [(T([9, 9]),), (T([4]),)], dynamic_shapes=({0: "n"},)
    )
    assert body_of(program)["Not"] <= 1


def steps(x):
    h = torch.zeros(1, 3)
    for t in range(x.shape[0]):
        h = torch.tanh(h + x[t : t + 1]).squeeze(0).unsqueeze(0)
    return h


def test_a_row_taken_as_a_slice_has_size_one():
    program = agree(
        steps, [(torch.rand(4, 3),)], [(torch.rand(9, 3),)], dynamic_shapes=({0: "n"},)
    )
    assert body_of(program)["Squeeze"] == 1


def stops_early(x):
    for step in range(100):
        x = x * 0.5
        if x.max() < 0.1:
            break
    return x, step


def test_a_loop_that_may_end_early_is_one_loop():
    program = agree(stops_early, [(T([3.0]),)], [(T([0.01]),), (T([1e20]),)])
    assert program.report.op_counts["Loop"] == 1
    assert "If" not in program.report.op_counts


def positive_rows(x):
    total = torch.zeros(())
    for row in x[x[:, 0] > 0]:
        total = total + row.max()
    return total


def test_a_loop_that_no_example_enters():
    some, none = torch.rand(4, 2), -torch.rand(3, 2)
    agree(positive_rows, [(none,)], [(some,), (torch.rand(1, 2),)], dynamic_shapes=({0: "n"},))


def shares(x):
    rest = 1.0
    while rest > 0.1:
        rest = rest - 0.5 / x.shape[0]
    return x * rest


def test_a_float_is_divided_by_a_size():
    agree(shares, [(torch.rand(3),)], [(torch.rand(8),), (torch.rand(1),)],
          dynamic_shapes=({0: "n"},))  # fmt: skip


def climbs(parent):
    depth = torch.zeros_like(parent)
    for i in range(parent.shape[0]):
        node = i
        while parent[node] >= 0:
            node = parent[node]
            depth[i] += 1
    return depth


def test_eager_code_that_never_ends_on_other_values_does_not_hold_up_the_export():
    agree(climbs, [(T([-1, 0, 1]),)], [(T([-1, 0, 0, 2]),)], dynamic_shapes=({0: "n"},))


def shorter_side(image):
    scale = min(image.shape[-2:]) / 4
    return image.sum() * scale


def test_the_shorter_side_of_an_image_is_not_always_the_same():
    agree(shorter_side, [(torch.rand(3, 8, 12),)], [(torch.rand(3, 9, 5),), (torch.rand(3, 4, 4),)],
          dynamic_shapes=({1: "h", 2: "w"},))  # fmt: skip

"""In-place writes through views of views: random programs agree with eager."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bridge
from tests.script.harness import agree

# --- random programs --------------------------------------------------------------------------
#
# A program is a list of steps over a growing list of tensors. Each step makes a view of one of
# them, makes a new tensor, or writes to one. All tensors are results in the end.


def view_of(t: torch.Tensor, kind: int, a: int, b: int) -> torch.Tensor | None:
    """One of many views; None if this one is not possible."""
    rank = t.dim()
    if kind == 0:
        return t.reshape(-1) if t.is_contiguous() else None
    if kind == 1 and rank >= 2:
        return t.transpose(a % rank, b % rank)
    if kind == 2 and rank >= 1 and t.shape[a % rank] > 1:
        return t.narrow(a % rank, b % (t.shape[a % rank] - 1), 1 + b % 2)
    if kind == 3 and rank >= 1:
        return t.select(a % rank, b % t.shape[a % rank])
    if kind == 4:
        return t.unsqueeze(a % (rank + 1))
    if kind == 5 and rank >= 1:
        return t[::2] if b % 2 else t[1:]
    if kind == 6 and rank >= 2 and t.shape[0] == t.shape[1]:
        return t.diagonal()
    if kind == 7 and rank >= 1:
        return t.chunk(2, a % rank)[-1]
    if kind == 8 and rank >= 1:
        return t.unbind(a % rank)[b % t.shape[a % rank]]
    if kind == 9 and rank >= 2:
        return t.permute(*range(1, rank), 0)
    if kind == 10 and rank >= 1:
        return t[..., b % t.shape[-1]]
    if kind == 11 and rank >= 2:
        return t[a % t.shape[0], None]
    if kind == 12:
        return t.squeeze()
    if kind == 13 and t.is_contiguous() and t.numel() % 2 == 0 and t.numel():
        return t.view(2, -1)
    if kind == 14 and rank >= 1 and t.shape[-1] >= 2:
        return t.unfold(-1, 2, 2)
    return None


def write_to(t: torch.Tensor, source: torch.Tensor, kind: int, a: int) -> None:
    """One of many in-place writes."""
    number = float(a % 5) - 2.0
    if kind == 0:
        t.add_(number)
    elif kind == 1:
        t.mul_(0.5)
    elif kind == 2:
        t.fill_(number)
    elif kind == 3:
        t.zero_()
    elif kind == 4:
        t.copy_(source.sum())
    elif kind == 5 and t.dim() >= 1:
        t[a % t.shape[0]] = number
    elif kind == 6 and t.dim() >= 1:
        t[..., : 1 + a % t.shape[-1]] += 1
    elif kind == 7:
        t.masked_fill_(t > number + 0.0137, 0.25)  # no value lies on the edge
    elif kind == 8 and t.dim() >= 1:
        t[t < 0.0219] = number
    elif kind == 9:
        t.clamp_(-1.0, 1.5)
    elif kind == 10 and t.dim() >= 1:
        t.index_fill_(0, torch.tensor([a % t.shape[0]]), number)
    elif kind == 11 and t.dim() >= 1:
        t.index_put_((torch.tensor([a % t.shape[0]]),), source.mean())
    elif kind == 12:
        torch.sin(t.clone(), out=t)
    elif kind == 13:
        t -= source.max()
    elif kind == 14 and t.dim() >= 1:
        t[::2] = t[::2].flip(0) * 1.5
    elif kind == 15:
        t.sub_(t.mean())


Step = tuple[str, int, int, int, int]
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("view"),
            st.integers(0, 30),
            st.integers(0, 14),
            st.integers(0, 5),
            st.integers(0, 5),
        ),
        st.tuples(
            st.just("write"),
            st.integers(0, 30),
            st.integers(0, 15),
            st.integers(0, 9),
            st.integers(0, 30),
        ),
        st.tuples(st.just("new"), st.integers(0, 30), st.integers(0, 2), st.just(0), st.just(0)),
    ),
    min_size=2,
    max_size=12,
)


def run_program(program: list[Step], x: torch.Tensor) -> list[torch.Tensor]:
    tensors = [x * 1.0, x + 1.0]
    for what, which, kind, a, b in program:
        t = tensors[which % len(tensors)]
        if what == "view":
            made = view_of(t, kind, a, b)
            if made is not None and made.numel():
                tensors.append(made)
        elif what == "new":
            tensors.append([t.clone(), t * 2, torch.cat([t.reshape(-1), x.reshape(-1)])][kind])
        else:
            write_to(t, tensors[b % len(tensors)], kind, a)
    return tensors


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(steps, st.sampled_from([(2, 3), (4,), (2, 2, 3), (3, 3), (2, 4)]))
def test_random_programs_of_views_and_writes_agree(program, shape):
    x = torch.linspace(-2, 3, int(torch.tensor(shape).prod())).view(shape)
    agree(lambda x: run_program(program, x), [(x,)], [(x.flip(0) * 1.7,)])


@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(steps)
def test_random_programs_agree_with_a_dynamic_dim(program):
    """With sizes from 4 on, so that no step of the program is possible at one size only."""
    fixed = [s for s in program if not (s[0] == "view" and s[2] in (6, 7, 8, 12, 13, 14))]
    x = torch.linspace(-2, 3, 20).view(5, 4)  # sums to no zero, which rounding would lose
    program = bridge.export(
        lambda x: run_program(fixed, x), x, dynamic_shapes={"x": {0: "n"}}, verify=False
    )
    for size in (5, 7, 12):
        y = torch.linspace(-3, 4, size * 4).view(size, 4)
        for got, expected in zip(program(y), run_program(fixed, y), strict=True):
            torch.testing.assert_close(got, expected)


# --- named cases --------------------------------------------------------------------------------


def overlapping_siblings(x):
    y = x + 0
    a, b = y[:3], y[1:]
    a += 1
    b *= 2
    return y, a, b


def write_to_the_base_after_the_view(x):
    y = x + 0
    row = y[0]
    y.mul_(3)
    return row, y


def view_of_a_view_of_a_view(x):
    y = x + 0
    y.view(-1)[2:].view(2, -1).t()[0].fill_(7)
    return y


def writes_to_an_expanded_source(x):
    y = torch.zeros(4, 4)
    y[:] = x[0].expand(4, 4)
    y[1:3, 1:3] = x[:2, :2].t()
    y[..., -1] += y[..., 0]
    return y


def attention_cache(x):
    cache = torch.zeros(2, 8, 4)
    cache[:, 2:6] = x
    cache[:, 3].add_(1)
    return cache, cache[:, :5].sum(1)


def boolean_and_integer_writes(x):
    y = x.clone()
    y[y > 0] = 0.5
    y[[0, 2], [1, 1]] = torch.tensor([5.0, 6.0])
    y[torch.tensor([1])] *= 2
    y[torch.tensor([True, False, False, True])] -= 1
    return y


def out_arguments(x):
    total, result = torch.empty(4), torch.empty(4, 4)
    torch.sum(x, 0, out=total)
    torch.add(x, 1, out=result)
    return total, result


def swap_rows(x):
    y = x.clone()
    y[0], y[1] = y[1].clone(), y[0].clone()
    return y


def detach_shares_memory(x):
    y = x + 0
    z = y.detach()
    z += 1
    w = y.data
    w.mul_(2)
    return y, z, w


def real_view_of_type(x):
    y = x.clone()
    y.view(2, 8)[1].neg_()
    return y


CASES = [
    overlapping_siblings, write_to_the_base_after_the_view, view_of_a_view_of_a_view,
    writes_to_an_expanded_source, boolean_and_integer_writes, out_arguments, swap_rows,
    detach_shares_memory, real_view_of_type,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda f: f.__name__)
def test_agrees(case):
    x = torch.linspace(-2, 2, 16).view(4, 4)
    agree(case, [(x,)], [(x.t().contiguous() * 3,)])


def test_slices_of_a_cache_are_written():
    agree(attention_cache, [(torch.randn(2, 4, 4),)], [(torch.randn(2, 4, 4),)])


def test_contiguous_copies_in_some_worlds_only():
    def f(x):
        return x.transpose(0, 1).contiguous().view(-1) * 2

    program = bridge.export(f, torch.randn(1, 4), dynamic_shapes=({0: "n"},))
    x = torch.randn(3, 4)
    torch.testing.assert_close(program(x), f(x))


def reshaped_in_place(x):
    x = x * 1
    row = x[0]
    x.t_()
    x[1] += 10
    x.unsqueeze_(0).transpose_(0, 2)
    x.squeeze_(2)
    row.mul_(2)
    return x, row, x.shape[0]


@pytest.mark.parametrize("sizes", [None, ({0: "n"},)])
def test_shapes_that_change_in_place(sizes):
    x = torch.randn(3, 4)
    program = bridge.export(reshaped_in_place, x, dynamic_shapes=sizes)
    for got, expected in zip(program(x), reshaped_in_place(x), strict=True):
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected))

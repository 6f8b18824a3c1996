"""Lists of sizes and their comparison; branches that wait for a size; repeats of a length that is data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bridge
from tests.script.harness import assert_same


def outer_product(x: torch.Tensor) -> torch.Tensor:
    kept = x[x > 0]
    most = x.argmax()
    product = kept.view(-1, 1) * x[None]
    assert list(product.size()) == [kept.shape[0], x.shape[0]]
    assert (most, product.shape[1]) == (x.argmax(), x.shape[0])
    if [kept.shape[0]] == [x.shape[0]]:
        product = product * 2
    return product


def test_lists_of_sizes_are_compared_number_by_number() -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    program = bridge.export(outer_product, x, dynamic_shapes={"x": {0: "n"}})
    for x in (torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0, 4.0, -1.0]), -torch.ones(2)):
        torch.testing.assert_close(program(x), outer_product(x))


@bridge.script
def single_row_first(x: torch.Tensor) -> torch.Tensor:
    if x.shape[0] == 1:
        if x.sum() > 100:
            return x.reshape(1, 4) * 2
        return -x.reshape(1, 4)
    return x + 1


def test_branches_in_a_branch_for_a_size_that_no_example_has() -> None:
    x = torch.randn(3, 4)
    program = bridge.export(single_row_first, x, dynamic_shapes={"x": {0: "n"}}, verify=False)
    assert any("x.shape[0] == 1" in a for a in program.report.assumptions)
    torch.testing.assert_close(program(torch.ones(5, 4)), torch.full((5, 4), 2.0))


def test_sizes_that_a_branch_waits_for_are_tried() -> None:
    x = torch.randn(3, 4)
    program = bridge.export(single_row_first, x, dynamic_shapes={"x": {0: "n"}})
    for x in (torch.ones(1, 4), torch.full((1, 4), 99.0), torch.ones(2, 4)):
        torch.testing.assert_close(program(x), single_row_first(x))


def repeat_kept(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    kept = n[n >= 0]
    return torch.repeat_interleave(x[: kept.shape[0]], kept, dim=0)


@pytest.mark.parametrize("counts", [[2, 0, 3], [1, -1, 1], [-1, 4, -1], [-1, -1, -1]])
def test_repeats_of_a_length_that_is_data(counts: list[int]) -> None:
    x = torch.arange(6.0).reshape(3, 2)
    program = bridge.export(repeat_kept, (x, torch.tensor([1, 2, -1])))
    n = torch.tensor(counts)
    torch.testing.assert_close(program(x, n), repeat_kept(x, n))


def count_of(items: list[int], others: list[int] | None = None) -> torch.Tensor:
    return torch.arange(len(items if others is None else others) + items[-1])


def made_by_the_caller(x: torch.Tensor) -> torch.Tensor:
    places = list(range(x.shape[0]))
    return count_of(places).sum() + count_of(places, [-1] + places[1:-1][::2]) + x.sum()


def test_lists_that_the_caller_made_of_sizes_are_followed() -> None:
    x = torch.randn(6)
    program = bridge.export(made_by_the_caller, x, dynamic_shapes={"x": {0: "n"}})
    assert len(program.report.scripted) == 2
    for n in (3, 9, 20):
        x = torch.randn(n)
        torch.testing.assert_close(program(x), made_by_the_caller(x))


def stars(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    rows = [row * 2 for row in x]
    places = [-1, *list(range(x.shape[0]))[1:], 7]
    return torch.stack([x[0], *rows, *rows]), torch.stack((x[0] + 1, *rows)), len(places)


def test_stars_in_displays_are_followed() -> None:
    program = bridge.export(stars, torch.randn(3, 2), dynamic_shapes={"x": {0: "n"}})
    for n in (1, 2, 7):
        x = torch.randn(n, 2)
        for ours, theirs in zip(program(x), stars(x), strict=True):
            torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs))


STEP = np.lcm(2, 3)


def multiples(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.shape[0]
    if n % STEP != 0 and n > STEP:
        x = torch.cat([x, x.new_zeros(STEP - n % STEP)])
    found = [STEP * n, n // STEP, *divmod(STEP + 40, n), STEP - n, n / STEP]
    return x, torch.tensor(found, dtype=torch.float64)


def test_numbers_of_numpy_meet_sizes() -> None:
    program = bridge.export(multiples, torch.randn(7), dynamic_shapes=({0: "n"},))
    for n in (2, 6, 13):
        x = torch.randn(n)
        assert_same(program(x), multiples(x), rtol=1e-6, atol=1e-6, inputs=n)

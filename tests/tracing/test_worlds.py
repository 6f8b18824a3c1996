"""Which dims vary, and which sizes tell them apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.errors import DynamicShapeError
from exporters.tracing.worlds import Symbol, candidate_sizes, first_sizes, parse_dynamic_shapes


class Dim:
    """Like ``torch.export.Dim``."""

    def __init__(self, name, low=None, high=None):
        self.__name__, self.min, self.max = name, low, high


def parse(spec, names=("x", "y"), paths=(("x",), ("y",)), shapes=((2, 5), (2, 7))):
    found = parse_dynamic_shapes(spec, list(names), list(paths), list(shapes))
    return {s.name: (s.size, s.places) for s in found}


@given(st.integers(0, 5000), st.integers(0, 3), st.none() | st.integers(1, 6000))
def test_candidates_are_other_sizes_within_the_bounds(size, low, high):
    symbol = Symbol("n", size, [(0, 0)], minimum=low, maximum=high)
    candidates = list(candidate_sizes(symbol))
    assert len(set(candidates)) == len(candidates)
    assert all(c not in (0, 1, size) and symbol.allows(c) for c in candidates)
    if high is None:
        assert candidates


@given(st.integers(2, 2000))
def test_the_first_candidate_has_another_half_and_quarter_too(size):
    first = next(candidate_sizes(Symbol("n", size, [(0, 0)])))
    assert first // 2 != size // 2
    assert (first + 1) // 2 != (size + 1) // 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_dims_get_sizes_of_their_own(sizes):
    symbols = [Symbol(f"n{i}", n, [(i, 0)]) for i, n in enumerate(sizes)]
    chosen = list(first_sizes(symbols, set(sizes)).values())
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(sizes)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, {}),
        ({"x": {0: "n"}, "y": {0: "n", 1: "m"}}, {"n": (2, [(0, 0), (1, 0)]), "m": (7, [(1, 1)])}),
        (({0: "n"}, {-1: "m"}), {"n": (2, [(0, 0)]), "m": (7, [(1, 1)])}),
        ({"x": [0, 1]}, {"x_dim_0": (2, [(0, 0)]), "x_dim_1": (5, [(0, 1)])}),
        ({"x": ("n", None)}, {"n": (2, [(0, 0)])}),
        ({"x": (2, 5)}, {}),
        ({"x": {0: Dim("n", 1, 9)}}, {"n": (2, [(0, 0)])}),
        ({"x": None}, {}),
        (({0: "n"},), {"n": (2, [(0, 0)])}),
    ],
)
def test_declarations(spec, expected):
    assert parse(spec) == expected


def test_declarations_inside_of_nests():
    paths = [("cache", "layers", 0), ("cache", "layers", 1)]
    names = ["cache.layers.0", "cache.layers.1"]
    for spec in (
        {"cache": {"layers": [{0: "n"}, {1: "m"}]}},
        {"cache": [{0: "n"}, {1: "m"}]},  # an object's only attribute may be left out
        {"cache.layers.0": {0: "n"}, "cache.layers.1": {1: "m"}},
    ):
        assert parse(spec, names, paths) == {"n": (2, [(0, 0)]), "m": (7, [(1, 1)])}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"z": {0: "n"}}, "dynamic_shapes names 'z'; the model's inputs are 'x', 'y'"),
        ({"x": {2: "n"}}, r"dynamic_shapes names axis 2 of 'x', which has 2 dims: \[2, 5\]"),
        ({"x": ("n",)}, r"dynamic_shapes gives 1 dims for 'x', which has 2: \[2, 5\]"),
        ({"x": {0: 3}}, "dynamic_shapes says that dim 0 of 'x' is 3; in the example it is 2"),
        ({"x": {0: "n", 1: "n"}}, "dim 'n' is 2 in one input and 5 in 'x' dim 1"),
        ((None, None, None), "dynamic_shapes has 3 entries, the model takes 2 inputs: x, y"),
        (3, "dynamic_shapes is a int, not a dict or tuple"),
    ],
)
def test_declarations_that_are_wrong(spec, message):
    with pytest.raises(DynamicShapeError, match=message):
        parse(spec)


def test_numbers_have_no_dims():
    with pytest.raises(DynamicShapeError, match="input 'y' is a number"):
        parse({"y": {0: "n"}}, shapes=((2, 5), None))

"""Nests are taken apart into leaves and put together again as what they were."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exporters.tracing.pytree import flatten

Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Fields that cannot be assigned."""

    array: Any
    name: str = "n"


class Cache:
    """An object with leaves among its attributes."""

    def __init__(self, *layers: Any) -> None:
        self.layers = list(layers)
        self.size = 3


class Leaf:
    """Stands for an array."""


def is_leaf(x):
    return isinstance(x, Leaf)


NESTS = st.recursive(
    st.builds(Leaf) | st.none() | st.integers() | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3).map(collections.OrderedDict)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


@given(NESTS)
def test_a_nest_is_rebuilt_as_it_was(nest):
    leaves, tree = flatten(nest, is_leaf)
    rebuilt = tree.unflatten(leaves)
    assert rebuilt == nest
    assert type(rebuilt) is type(nest)
    assert tree.leaf_count == len(leaves) == len(list(tree.paths()))


def test_paths_lead_to_leaves():
    x, y = Leaf(), Leaf()
    nest = {"a": [x, 3], "b": Pair(None, Cache(y))}
    leaves, tree = flatten(nest, is_leaf)
    assert leaves == [x, y]
    assert list(tree.paths()) == [("a", 0), ("b", "second", "layers", 0)]


def test_dataclasses_and_objects_are_copied_not_changed():
    x, y = Leaf(), Leaf()
    cache, frozen = Cache(x), Frozen(y)
    leaves, tree = flatten([cache, frozen], is_leaf)
    new = [Leaf(), Leaf()]
    other_cache, other_frozen = tree.unflatten(new)
    assert leaves == [x, y]
    assert (cache.layers, frozen.array) == ([x], y)
    assert (other_cache.layers, other_cache.size) == ([new[0]], 3)
    assert other_frozen == Frozen(new[1])


def test_what_holds_no_leaf_stays_the_same_object():
    cache = Cache(1, 2)
    _, tree = flatten([cache], is_leaf)
    assert tree.unflatten([])[0] is cache


def test_nests_that_hold_themselves_end():
    cache = Cache(Leaf())
    cache.me = cache
    leaves, _ = flatten(cache, is_leaf)
    assert len(leaves) == 1

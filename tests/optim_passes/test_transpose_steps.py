"""Transposes in two steps."""

import itertools

import pytest

from optim_passes.fusion.transpose_steps import TransposeStepsPass
from optim_passes.pipeline import run
from optim_passes.simplify.inference import InferShapesPass
from tests.optim_passes.running import OTHER_SIZES, SIZES, check_same, feed_for, parse


def transposed(shape, perm):
    """The permutations that are left of one, which change no value at two choices of sizes."""
    text = (
        f"g (float[{', '.join(map(str, shape))}] x) => (y) "
        f"{{ a = Neg(x) b = Transpose<perm={list(perm)}>(a) y = Neg(b) }}"
    )
    before = parse(text)
    after, _ = run(parse(text), [InferShapesPass(), TransposeStepsPass()])
    feeds = [feed_for(before, sizes) for sizes in (SIZES, OTHER_SIZES)]
    check_same(before, after, feeds, rtol=0, atol=0)
    turns = [n for n in after.graph if n.op_type == "Transpose"]
    return [list(n.attributes["perm"].as_ints()) for n in turns]


@pytest.mark.parametrize(
    ("shape", "perm", "steps"),
    [
        # Patches of an image, and back: rows of a patch are blocks, of 48 and of 3.
        (("N", 3, 4, 16, 4, 16), (0, 2, 4, 3, 5, 1), [[0, 2, 3, 4, 5, 1], [0, 1, 3, 2, 4]]),
        (("N", 4, 4, 16, 16, 3), (0, 5, 1, 3, 2, 4), [[0, 1, 3, 2, 4, 5], [0, 4, 1, 2, 3]]),
        ((8, 16, 16, 4), (0, 3, 2, 1), [[0, 2, 1, 3], [0, 2, 1]]),
        ((16, 16, 16), (2, 1, 0), [[1, 0, 2], [1, 0]]),
        # Only run time knows the sizes that a Reshape would name: it keeps them all.
        (("N", 8, "H", "W"), (0, 3, 2, 1), [[0, 2, 1, 3], [0, 3, 1, 2]]),
    ],
)
def test_what_would_move_by_element_moves_in_blocks(shape, perm, steps):
    assert transposed(shape, perm) == steps


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        (("N", 32, 16, 16), (0, 2, 3, 1)),
        (("N", 16, 16, 32), (0, 3, 1, 2)),
        (("N", 32, 16, 16), (0, 2, 1, 3)),
        (("N", 1, 64, 64), (0, 3, 1, 2)),
        ((2, 3, 4, 5), (0, 3, 2, 1)),
    ],
)
def test_what_is_quick_already_stays(shape, perm):
    assert transposed(shape, perm) == [list(perm)]


@pytest.mark.parametrize("perm", list(itertools.permutations(range(4))))
@pytest.mark.parametrize(
    "shape", [(8, 7, 9, 8), ("N", 6, 9, 16), ("N", 9, "H", 16), ("N", "M", 8, "W")]
)
def test_every_order_is_kept(shape, perm):
    transposed(shape, perm)

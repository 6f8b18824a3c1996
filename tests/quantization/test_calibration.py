"""Histograms in constant memory, and what odd batches do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.calibration import METHODS, Calibration, CalibrationError, Calibrator, Histogram
from tests.optim_passes.running import parse


def model():
    return parse(
        """g (float[N, 4] x, float[4, 3] w) => (float[N, 3] y) {
            h = Relu(x)
            y = MatMul(h, w)
        }""",
        w=np.arange(12, dtype=np.float32).reshape(4, 3),
    )


def calibrate(batches, **options):
    return Calibrator(model(), ["h"], **options).run(batches)


def test_bounds_are_exact_and_counts_are_complete():
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((5, 4)).astype(np.float32) * s for s in (1e-3, 1, 300)]
    found = calibrate(batches)
    h = found.histograms["h"]
    everything = np.maximum(np.concatenate(batches), 0)
    assert (h.low, h.high) == (0.0, everything.max())
    assert h.counts.sum() == h.total == everything.size
    assert found.batches == 3


@settings(deadline=None)
@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=60), st.data())
def test_counts_depend_on_neither_order_nor_batching(values, data):
    values = np.asarray(values, np.float32)
    order = data.draw(st.permutations(range(len(values))))
    cut = data.draw(st.integers(0, len(values)))
    one, two = Histogram(), Histogram()
    one.add(values)
    shuffled = values[list(order)]
    two.add(shuffled[:cut])
    two.add(shuffled[cut:])
    assert (one.low, one.high, one.bound) == (two.low, two.high, two.bound)
    # A number on the edge of a bin may come to lie in the next one when bins are added up.
    assert np.abs(np.cumsum(one.counts) - np.cumsum(two.counts)).max() <= (
        np.isclose(values % (one.bound / 2048 or 1), 0, atol=1e-3 * (one.bound or 1)).sum()
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200),
    st.sampled_from(sorted(METHODS)),
)
def test_every_method_stays_within_what_was_seen(values, method):
    h = Histogram()
    h.add(np.asarray(values, np.float32))
    low, high = h.range(method)
    assert min(values) <= low <= high <= max(values)


def test_minmax_keeps_all_and_mse_cuts_an_outlier():
    rng = np.random.default_rng(0)
    h = Histogram()
    h.add(rng.standard_normal(60000).astype(np.float32))
    h.add(np.asarray([1000.0], np.float32))
    assert h.range("minmax")[1] == 1000
    assert h.range("percentile")[1] < 10
    assert 3 < h.range("entropy")[1] < 100
    # One number of 60,001 that is off by 980 costs more than coarse steps everywhere.
    low, high = h.range("mse")
    least = min(h.noise(low * a, high * b)[1] for a in (0.9, 1, 1.1) for b in (0.9, 1, 1.1))
    assert h.noise(low, high)[1] <= 1.05 * least
    assert h.noise(low, high)[1] <= h.noise(*h.range("minmax"))[1]


def test_moving_average_follows_the_batches():
    h = Histogram()
    for high in (1.0, 2.0):
        h.add(np.asarray([0.0, high], np.float32))
    assert h.range("moving-average")[1] == pytest.approx(1 + 0.01)


def test_memory_does_not_grow_with_batches():
    h = Histogram()
    before = sum(a.nbytes for a in h.state().values())
    for seed in range(50):
        h.add(np.random.default_rng(seed).standard_normal(1000).astype(np.float32))
    assert sum(a.nbytes for a in h.state().values()) == before


def test_calibration_is_deterministic_and_resumes(tmp_path):
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((3, 4)).astype(np.float32) for _ in range(6)]
    whole = calibrate(batches)
    state = tmp_path / "state.npz"

    def interrupted():
        yield from batches[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(interrupted(), resume=state)
    seen = []
    resumed = calibrate(batches, resume=state, progress=seen.append)
    assert seen == [5, 6]
    for method in METHODS:
        assert resumed.ranges(method) == whole.ranges(method)
    again = Calibration.load(state)
    np.testing.assert_array_equal(again.histograms["h"].counts, whole.histograms["h"].counts)


def test_a_state_of_another_model_is_refused(tmp_path):
    state = tmp_path / "state.npz"
    calibrate([np.ones((1, 4), np.float32)], resume=state)
    with pytest.raises(CalibrationError, match="another model"):
        Calibrator(model(), ["y"], resume=state)
    state.write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="no calibration"):
        Calibrator(model(), ["h"], resume=state)


def test_empty_batches_are_left_out_and_counted():
    found = calibrate([np.zeros((0, 4), np.float32), np.ones((2, 4), np.float32)])
    assert (found.batches, found.skipped) == (1, 1)


@pytest.mark.parametrize("batches", [[], [np.zeros((0, 4), np.float32)]])
def test_nothing_to_calibrate_on_is_an_error(batches):
    with pytest.raises(CalibrationError, match=r"no calibration batch|batches are empty"):
        calibrate(batches)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_with_their_place(value):
    bad = np.ones((2, 4), np.float32)
    bad[1, 2] = value
    with pytest.raises(CalibrationError, match=r"batch 1 holds .* in 'x' at \[1, 2\]"):
        calibrate([np.ones((1, 4), np.float32), bad])


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_batches_have_the_range_of_their_constant(method, value):
    found = calibrate([np.full((2, 4), value, np.float32)] * 2)
    assert found.ranges(method) == {"h": (value, value)}


def test_inner_values_that_are_not_finite_are_counted_apart():
    h = Histogram()
    h.add(np.asarray([1.0, np.nan, -np.inf, 2.0], np.float32))
    assert (h.low, h.high, h.not_finite, h.total) == (1.0, 2.0, 2, 2)
    h.add(np.asarray([np.nan], np.float32))
    assert h.batches == 1
    broken = Histogram()
    broken.add(np.asarray([np.nan], np.float32))
    with pytest.raises(ValueError, match="no finite number"):
        broken.range("minmax")


def test_batches_come_in_every_form(tmp_path):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    folder = tmp_path / "batches"
    folder.mkdir()
    np.savez(folder / "0.npz", x=x)
    np.save(folder / "1.npy", x)
    want = calibrate([x, x]).histograms["h"].counts
    torch = pytest.importorskip("torch")
    labels = np.zeros(2)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(np.concatenate([x, x])), torch.zeros(4)), 2
    )
    for source in (
        folder, str(folder), [{"x": x}] * 2, [(x, labels)] * 2, [[x]] * 2, (b for b in (x, x)),
        loader, [torch.from_numpy(x)] * 2, [x.astype(np.float64)] * 2,
    ):  # fmt: skip
        np.testing.assert_array_equal(calibrate(source).histograms["h"].counts, want)


def test_batches_that_do_not_fit_are_errors(tmp_path):
    with pytest.raises(CalibrationError, match="lacks x; it has z"):
        calibrate([{"z": np.ones((1, 4), np.float32)}])
    with pytest.raises(CalibrationError, match=r"holds no \.npz"):
        calibrate(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="cannot read arrays"):
        calibrate(tmp_path)


def test_an_unknown_method_or_value_is_named():
    with pytest.raises(CalibrationError, match="'median'"):
        calibrate([np.ones((1, 4), np.float32)]).ranges("median")
    with pytest.raises(CalibrationError, match="no value 'nothing'"):
        Calibrator(model(), ["nothing"])


def test_the_model_is_left_as_it_was():
    given = model()
    before = [v.name for v in given.graph.outputs]
    Calibrator(given, ["h"]).run([np.ones((1, 4), np.float32)])
    assert [v.name for v in given.graph.outputs] == before
    assert not given.graph.node(0).outputs[0].is_graph_output()


def test_channels_and_moments_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((n, 4)).astype(np.float32) for n in (2, 5)]
    found = calibrate(x, channels={"h": -1}, moments=["h"])
    h = np.maximum(np.concatenate(x), 0)
    np.testing.assert_allclose(found.channels["h"].largest, h.max(0))
    np.testing.assert_allclose(found.channels["h"].means, h.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.moments["h"].mean, h.T @ h / len(h), rtol=1e-5)

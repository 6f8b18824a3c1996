"""Sessions: what goes in, what comes out, whose memory it is, and how a run ends."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

import bridge
from bridge.device import DeviceRuns
from bridge.empty_batches import guarded
from bridge.errors import RunCancelledError, RunTimeoutError
from tests.bridge.graphs import SCALE, SLOW, graph_bytes

X = np.arange(12, dtype=np.float32).reshape(3, 4)
W = np.full(4, 2.0, np.float32)


@pytest.fixture(scope="module")
def scale():
    return bridge.load(graph_bytes(SCALE))


def test_numpy_in_numpy_out(scale):
    result = scale.run({"x": X, "w": W})["y"]
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, X * 2)


def test_torch_in_torch_out(scale):
    result = scale.run({"x": torch.from_numpy(X), "w": W})["y"]
    torch.testing.assert_close(result, torch.from_numpy(X * 2))


def test_call_takes_positional_and_keyword_arguments():
    program = bridge.export(lambda x, scale: x * scale, (torch.ones(2), torch.ones(2)))
    session = program.session()
    torch.testing.assert_close(
        session(torch.ones(2), scale=torch.full((2,), 3.0)), torch.full((2,), 3.0)
    )


@pytest.mark.parametrize(
    "value",
    [
        torch.from_numpy(X).t().contiguous().t(),
        torch.from_numpy(X).requires_grad_(),
        np.asfortranarray(X),
        X.astype(">f4"),
        X.tolist(),
    ],
    ids=["strided", "requires_grad", "fortran", "big-endian", "list"],
)
def test_any_memory_layout_is_accepted(scale, value):
    result = scale.run({"x": value, "w": W})["y"]
    np.testing.assert_array_equal(
        np.asarray(result.detach() if hasattr(result, "detach") else result), X * 2
    )


@pytest.mark.parametrize(
    ("feed", "told"),
    [
        ({"x": X}, "missing w (float32[4])"),
        ({"x": X, "w": W, "v": W}, "unknown v"),
        (
            {"x": X.astype(np.float64), "w": W},
            "'x' is float64[3, 4], the model takes float32[N, 4]",
        ),
        ({"x": torch.ones(3, 4).half(), "w": W}, "pass x.to(torch.float32)"),
        ({"x": X[:, :3], "w": W}, "size 3 instead of 4 at dim 1"),
        ({"x": X[0], "w": W}, "1 dims instead of 2"),
        ({"x": torch.ones(3, 4).to_sparse(), "w": W}, "pass x.to_dense()"),
        ({"x": "text", "w": W}, "'x' is 'text' (str)"),
    ],
)
def test_wrong_inputs_are_named(scale, feed, told):
    with pytest.raises(bridge.FeedError) as caught:
        scale.run(feed)
    assert told in str(caught.value)


def test_one_symbol_cannot_have_two_sizes():
    session = bridge.load(
        graph_bytes("g(float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }")
    )
    with pytest.raises(bridge.FeedError, match="N is 3 at dim 0, and 2 in 'a'"):
        session.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8,
          torch.bool, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_passes_bit_for_bit(dtype):
    name = from_torch_dtype(dtype).name.lower()
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    if dtype.itemsize == 1 and dtype.is_floating_point:  # no Transpose kernel: a type is passed on
        text = f"g({name}[2, 2] x) => ({name}[2, 2] y) {{ y = Identity(x) }}"
        expected = x
    else:
        text = f"g({name}[2, 2] x) => ({name}[2, 2] y) {{ y = Transpose(x) }}"
        expected = x.t()
    session = bridge.load(graph_bytes(text, opset=19))
    y = session.run({"x": x})["y"]
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected.float())
    array = bridge.session.to_numpy(x)
    back = session.run({"x": array})["y"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.float32), expected.float().numpy())


def test_bfloat16_outputs_of_numpy_inputs_are_ml_dtypes_arrays():
    session = bridge.load(
        graph_bytes("g(float[N] x) => (bfloat16[N] y) { y = Cast <to = 16> (x) }")
    )
    for size in (0, 3):
        y = session.run({"x": np.ones(size, np.float32)})["y"]
        assert y.dtype == ml_dtypes.bfloat16
        assert y.shape == (size,)


def test_empty_tensors_run(scale):
    assert scale.run({"x": np.zeros((0, 4), np.float32), "w": W})["y"].shape == (0, 4)


def test_strings_and_sequences_run():
    session = bridge.load(
        graph_bytes("g(seq(float[N]) s, int64 i) => (float[N] y) { y = SequenceAt(s, i) }")
    )
    result = session.run({"s": [np.ones(2, np.float32), np.zeros(3, np.float32)], "i": 1})["y"]
    np.testing.assert_array_equal(result, np.zeros(3))
    session = bridge.load(graph_bytes("g(string[N] s) => (string[N] t) { t = Identity(s) }"))
    assert list(session.run({"s": np.array(["a", "b"], object)})["t"]) == ["a", "b"]


# Memory


def test_inputs_and_outputs_are_not_copied():
    session = bridge.load(graph_bytes("g(float[N] x) => (float[N] y) { y = Neg(x) }"), threads=1)
    x = torch.ones(50_000_000)
    session.run({"x": x})
    plain = min(_seconds(lambda: session.runtime.run(None, {"x": x.numpy()})) for _ in range(5))
    ours = min(_seconds(lambda: session.run({"x": x})) for _ in range(5))
    copy = min(_seconds(x.clone) for _ in range(5))
    assert ours < plain + copy / 2


def _seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_results_outlive_the_session_and_its_inputs():
    kept = []
    for i in range(20):
        session = bridge.load(
            graph_bytes(
                "g(bfloat16[N] x) => (bfloat16[N] y, float[N] z) "
                "{ y = Identity(x)\n z = Cast <to = 1> (x) }"
            )
        )
        kept.append(
            (i, session.run({"x": torch.full((500 + i,), float(i), dtype=torch.bfloat16)}))
        )
        del session
    gc.collect()
    junk = [np.random.rand(1000) for _ in range(1000)]
    assert all((r["y"] == i).all() and (r["z"] == i).all() for i, r in kept)
    del junk


def test_an_output_that_is_an_input_is_a_copy():
    session = bridge.load(graph_bytes("g(float[N] x) => (float[N] x, float[N] y) { y = Neg(x) }"))
    x = np.ones(4, np.float32)
    assert not np.shares_memory(session.run({"x": x})["x"], x)


def test_later_runs_do_not_change_earlier_results(scale):
    first = scale.run({"x": X, "w": W})["y"]
    scale.run({"x": X + 1, "w": W})
    np.testing.assert_array_equal(first, X * 2)


# How a run ends


def slow_feed(count):
    return {"x": np.ones(100_000, np.float32), "n": np.array(count)}


def test_a_run_that_takes_too_long_is_stopped():
    session = bridge.load(graph_bytes(SLOW), threads=1)
    started = time.perf_counter()
    with pytest.raises(RunTimeoutError, match=r"longer than 0\.1 s"):
        session.run(slow_feed(100_000), timeout=0.1)
    assert time.perf_counter() - started < 5
    session.run(slow_feed(2), timeout=60)  # the session works on


def test_cancel_stops_runs_of_other_threads():
    session = bridge.load(graph_bytes(SLOW), threads=1)
    future = session.run_async(slow_feed(100_000))
    while not session.cancel():
        time.sleep(0.01)
    with pytest.raises(RunCancelledError):
        future.result(timeout=30)
    session.close()


def test_a_failing_run_is_a_run_error():
    session = bridge.load(
        graph_bytes("g(float[N] x, int64[M] s) => (float[A, B] y) { y = Reshape(x, s) }")
    )
    with pytest.raises(bridge.RunError, match="Reshape"):
        session.run({"x": np.ones(3, np.float32), "s": np.array([2, 2])})


def test_async_runs_can_be_awaited(scale):
    async def main():
        return await asyncio.wrap_future(scale.run_async({"x": X, "w": W}))

    np.testing.assert_array_equal(asyncio.run(main())["y"], X * 2)


def hammer(session, seconds, threads=32):
    """Run from many threads; returns what went wrong."""
    wrong: list[object] = []
    stop = time.monotonic() + seconds

    def work(number):
        x = torch.full((64, 4), float(number))
        try:
            while time.monotonic() < stop:
                y = session.run({"x": x, "w": W})["y"]
                if not (y == 2 * number).all():
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_threads_share_a_session(scale):
    assert hammer(scale, 1.0) == []
    before = resident()
    assert hammer(scale, 4.0) == []
    assert resident() - before < 50e6


@pytest.mark.slow
def test_threads_share_a_session_for_a_minute(scale):
    hammer(scale, 2.0)
    before = resident()
    assert hammer(scale, 60.0) == []
    assert resident() - before < 50e6


# Eager arguments


def test_a_dict_is_taken_by_its_keys():
    def model(values):
        return values["a"] - values["b"]

    a, b = torch.ones(2), torch.zeros(2)
    program = bridge.export(model, ({"a": a, "b": b},), verify=False)
    session = program.session()
    for call in (session, program):
        assert torch.equal(call({"b": b, "a": a}), a)
    with pytest.raises(bridge.FeedError, match=r"hold 'values.c', at the export there was"):
        session({"a": a, "c": b})
    assert bridge.check(model, program, ({"b": b, "a": a},)).passed


def test_frozen_arguments_cannot_change():
    program = bridge.export(lambda x, flip=False: -x if flip else x + 0, (torch.ones(2), True))
    session = program.session()
    torch.testing.assert_close(session(torch.ones(2)), -torch.ones(2))
    with pytest.raises(
        bridge.FeedError, match="'flip' is False, the model was exported with True"
    ):
        session(torch.ones(2), flip=False)


def test_frozen_arguments_are_kept_in_the_file(tmp_path):
    path = tmp_path / "m.onnx"
    bridge.export(lambda x, times=1: x * times, (torch.ones(2), 3), path)
    session = bridge.load(path)
    torch.testing.assert_close(session(torch.ones(2), 3), torch.full((2,), 3.0))
    with pytest.raises(bridge.FeedError, match="'times' is 2, the model was exported with 3"):
        session(torch.ones(2), 2)


def test_levels_that_do_not_exist_are_told():
    with pytest.raises(bridge.FeedError, match="optimization is 'fast'; it is one of none, basic"):
        bridge.load(graph_bytes(SCALE), optimization="fast")


def test_warmup_makes_its_own_inputs(scale):
    scale.warmup()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([[1.0, 2.0], [3.0]], "setting an array element with a sequence"),
        ([["a"]], "it is not made of numbers"),
        (None, "it is not made of numbers"),
        (np.array([[None]]), "it is not made of numbers"),
        (torch.ones(2, 4, device="meta"), "whose values cannot be read"),
        (torch.ones(2, 4).to_mkldnn(), "dense and strided"),
    ],
)
def test_values_that_are_no_numbers_are_refused(scale, value, told):
    with pytest.raises(bridge.FeedError, match=told):
        scale.run({"x": value, "w": np.ones(4, np.float32)})


def test_a_feed_is_a_dict_and_outputs_are_known_names(scale):
    feed = {"x": np.ones((2, 4), np.float32), "w": np.ones(4, np.float32)}
    for wrong in ([*feed.values()], torch.ones(2, 4)):
        with pytest.raises(bridge.FeedError, match="it is a dict by input name"):
            scale.run(wrong)
    with pytest.raises(bridge.FeedError, match="there is no output 'z'"):
        scale.run(feed, outputs=["z"])
    with pytest.raises(bridge.FeedError, match="no output is asked for"):
        scale.run(feed, outputs=[])
    assert list(scale.run(feed, outputs="y")) == ["y"]
    with pytest.raises(bridge.RunError, match="Config key is empty"):
        scale.run(feed, run_config={"": "1"})


def test_calls_without_a_signature_take_names(scale):
    x, w = torch.rand(2, 4), torch.rand(4)
    for result in (scale(x, w), scale(x, w=w), scale(w=w, x=x), scale({"w": w, "x": x})):
        assert torch.equal(result, x * w)
    with pytest.raises(bridge.FeedError, match="unknown z"):
        scale(x, z=w)
    with pytest.raises(bridge.FeedError, match="2 inputs given"):
        scale(x, x=x)


@pytest.mark.parametrize("value", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(value):
    with pytest.raises(bridge.FeedError, match="needs an ONNX model"):
        bridge.load(value)


def test_weights_that_are_inputs_may_be_replaced():
    text = "g(float[N, 2] x, float[2, 2] w) => (float[N, 2] y) <float[2, 2] w = {1, 0, 0, 1}>"
    session = bridge.load(graph_bytes(text + "{ y = MatMul(x, w) }"))
    x = np.ones((3, 2), np.float32)
    assert session.input_names == ["x"]
    assert np.array_equal(session.run({"x": x})["y"], x)
    found = session.run({"x": x, "w": np.full((2, 2), 3, np.float32)})["y"]
    assert np.array_equal(found, 6 * x)
    with pytest.raises(bridge.FeedError, match="size 3 instead of 2"):
        session.run({"x": x, "w": np.ones((3, 2), np.float32)})


def test_sequences_and_optionals_are_checked():
    text = "g(seq(float[N]) xs, int64 i) => (float[N] y) { y = SequenceAt(xs, i) }"
    session = bridge.load(graph_bytes(text))
    xs = [torch.zeros(2), torch.ones(2)]
    assert torch.equal(session(xs, 1), xs[1])
    with pytest.raises(bridge.FeedError, match="it is no list"):
        session.run({"xs": xs[0], "i": 0})
    with pytest.raises(bridge.FeedError, match="float64 instead of float32"):
        session.run({"xs": [xs[0].double()], "i": 0})
    with pytest.raises(bridge.FeedError, match="no values are made up"):
        session.warmup()
    pair = bridge.load(
        graph_bytes("g(float[N] x) => (seq(float[N]) y) { y = SequenceConstruct(x, x) }")
    )
    assert all(torch.equal(y, xs[1]) for y in pair(xs[1]))
    text = "g(optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }"
    session = bridge.load(graph_bytes(text))
    assert session.run({"x": torch.ones(2)})["y"]
    assert not session.run({"x": None})["y"]


def test_sessions_are_pickled_and_copied(scale):
    program = bridge.export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4), verify=False)
    x = torch.rand(3, 4)
    for session in (program.session(), bridge.load(graph_bytes(SCALE))):
        args = (x, x[0])[: len(session.inputs)]
        for other in (pickle.loads(pickle.dumps(session)), copy.deepcopy(session)):
            assert torch.equal(other(*args), session(*args))
            assert other.settings == session.settings


def test_a_closed_session_says_so():
    with bridge.load(graph_bytes(SCALE)) as session:
        feed = {"x": np.ones((2, 4), np.float32), "w": np.ones(4, np.float32)}
        session.run_async(feed).result()
    session.close()
    for run in (session.run, lambda feed: session.run_async(feed).result()):
        with pytest.raises(bridge.RunError, match="the session is closed"):
            run(feed)


def test_tensors_on_the_device_are_bound_where_they_lie():
    """The way of CUDA tensors, with the CPU as the device."""
    text = """g(float[N, 4] x, float[4] w) => (float[N, 4] y, int64[2, M] places) {
        y = Mul(x, w)
        places = NonZero(y)
    }"""
    session = bridge.load(graph_bytes(text))
    runs = DeviceRuns(session.runtime, session.inputs, session.outputs, torch.device("cpu"))
    x, w = torch.rand(3, 4), torch.arange(4.0)
    for feed in (
        {"x": x, "w": w},
        {"x": x.t().contiguous().t(), "w": w.numpy()},
        {"x": x.clone().requires_grad_(), "w": [0.0, 1.0, 2.0, 3.0]},
        {"x": x[:0], "w": w},
    ):
        with session.control.controlled() as options:
            y, places = runs.run(feed, ["y", "places"], options)
        want = torch.as_tensor(feed["x"]).detach() * w
        assert torch.equal(y, want)
        assert torch.equal(places, want.nonzero().t())
    for wrong in ({"x": x.double(), "w": w}, {"x": x, "w": w[:2]}, {"x": x[0], "w": w}):
        with pytest.raises(bridge.FeedError), session.control.controlled() as options:
            runs.run(wrong, ["y"], options)


def test_what_stays_bound_to_a_device_is_what_is_given():
    """Other addresses, shapes, orders and subsets of outputs between runs that bind the same."""
    text = """g(float[N, 4] x, float[4] w) => (float[N, 4] y, float[N, 4] z) {
        y = Mul(x, w)
        z = Add(x, w)
    }"""
    session = bridge.load(graph_bytes(text))
    runs = DeviceRuns(session.runtime, session.inputs, session.outputs, torch.device("cpu"))
    x, w = torch.rand(3, 4), torch.arange(4.0)
    results = []
    for feed in (
        {"x": x, "w": w},
        {"x": x, "w": w},
        {"x": x + 1, "w": w},
        {"x": x.reshape(-1)[:8].reshape(2, 4), "w": w},
        {"x": x, "w": w.numpy()},
        {"x": x, "w": w},
    ):
        for names in (["y", "z"], ["z"], ["z", "y"], ["y", "z"]):
            with session.control.controlled() as options:
                found = runs.run(feed, names, options)
            wanted = {"y": feed["x"] * w, "z": feed["x"] + w}
            results.append((found, [wanted[n] for n in names]))
    for found, wanted in results:  # no later run wrote over them
        assert all(map(torch.equal, found, wanted))


# Recurrent nodes on nothing, on which ONNX Runtime's kernels end the process

RECURRENT = """g(float[T, B, 2] x, bool[B] keep, float[1, B, 3] h0) => (float[T, 1, K, 3] y, float[1, K, 3] h)
<float[1, 3, 2] ones = {1, 1, 1, 1, 1, 1}> {
    w = Concat <axis = 1> (ones, ones, ones%s)
    square = Concat <axis = 2> (ones, ones)
    narrow = Constant <value_ints = [3]> ()
    start = Constant <value_ints = [0]> ()
    axis = Constant <value_ints = [2]> ()
    cut = Slice (square, start, narrow, axis)
    r = Concat <axis = 1> (cut, cut, cut%s)
    %s
    y, h = %s <hidden_size = 3> (%s, w, r, , , %s)
}"""
PICKED = "z = Compress <axis = 1> (x, keep)\n k = Compress <axis = 1> (h0, keep)"


@pytest.mark.parametrize("inside", [False, True], ids=["given", "made inside"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_nodes_take_empty_batches(kind, inside):
    more = [", ones", ", cut"] if kind == "LSTM" else ["", ""]
    names = ("z", "k") if inside else ("x", "h0")
    text = RECURRENT % (*more, PICKED if inside else "unused = Identity(keep)", kind, *names)
    session = bridge.load(graph_bytes(text))
    rng = np.random.default_rng(0)
    x, h0 = (rng.standard_normal(s).astype(np.float32) for s in ((4, 5, 2), (1, 5, 3)))
    whole = session.run({"x": x, "keep": np.ones(5, bool), "h0": h0})
    for count in (5, 2, 0):
        keep = np.arange(5) < count
        if inside:
            found = session.run({"x": x, "keep": keep, "h0": h0})
        else:
            found = session.run({"x": x[:, keep], "keep": keep[keep], "h0": h0[:, keep]})
        np.testing.assert_allclose(found["y"], whole["y"][:, :, keep], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["h"], whole["h"][:, keep], rtol=1e-5, atol=1e-6)
    nothing = session.run({"x": x[:0], "keep": np.ones(5, bool), "h0": h0})
    assert nothing["y"].shape == (0, 1, 5, 3)
    np.testing.assert_array_equal(nothing["h"], h0)


def test_recurrent_modules_take_what_a_mask_leaves():
    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.lstm = torch.nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)

        def forward(self, x, keep):
            return self.lstm(x[keep])

    model, x, keep = Tagger().eval(), torch.randn(3, 6, 3), torch.tensor([True, False, True])
    program = bridge.export(model, (x, keep), verify=False)
    for mask in (keep, ~keep, keep & ~keep):
        assert bridge.check(model, program, (x, mask)).passed
    twice = bridge.Session(guarded(program.model))  # as ONNX Runtime writes it down
    assert twice.run({"x": x, "keep": keep & ~keep})[twice.output_names[0]].shape == (0, 6, 8)

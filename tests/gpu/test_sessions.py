"""Sessions on CUDA: memory that is not copied, graphs that are captured, errors that tell."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import onnxruntime
import pytest
import torch

import bridge
from bridge.doctor import diagnose
from tests.bridge.graphs import SCALE, SLOW, graph_bytes
from tests.gpu.decoder import SMALL, Decoder, empty_cache, links
from tests.gpu.machine import ON_GPU, PROVIDERS

pytestmark = ON_GPU

NEG = "g(float[N] x) => (float[N] y) { y = Neg(x) }"


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)

    def forward(self, x):
        return self.down(torch.relu(self.up(x))) + x


@pytest.fixture(scope="module")
def mlp():
    module = Mlp().eval()
    program = bridge.export(module, torch.randn(2, 64), dynamic_shapes={"x": {0: "batch"}})
    return module.cuda(), program


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Memory


def test_tensors_stay_on_the_device(mlp, say):
    module, program = mlp
    session = program.session(providers=PROVIDERS)
    for size in (1, 3, 1000):
        x = torch.randn(size, 64, device="cuda")
        y = session(x)
        assert y.is_cuda
        close(y, module(x))
    y = session(torch.randn(2, 64))
    assert not y.is_cuda
    say(str(session.placement))


def test_large_inputs_are_not_copied(say):
    session = bridge.load(graph_bytes(NEG), providers=PROVIDERS)
    x = torch.ones(2**28, device="cuda")  # 1 GiB
    session.run({"x": x[:8]})
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    y = session.run({"x": x})["y"]
    taken = free - torch.cuda.mem_get_info()[0]
    say(f"a run on 1 GiB took {taken / 2**20:.0f} MiB")
    assert taken < 1.1 * 2**30  # the result alone
    assert (y == -1).all()


def test_inputs_may_lie_on_either_side():
    session = bridge.load(graph_bytes(SCALE), providers=PROVIDERS)
    x, w = torch.rand(3, 4, device="cuda"), torch.rand(4)
    y = session.run({"x": x, "w": w})["y"]
    assert y.is_cuda
    close(y, x * w.cuda())
    y = session.run({"x": x.cpu().numpy(), "w": w.numpy()})["y"]
    close(torch.from_numpy(y), (x * w.cuda()).cpu())


def test_results_of_unknown_shape_and_empty_ones_come_back():
    text = "g(float[N] x) => (int64[1, M] y) { y = NonZero(x) }"
    session = bridge.load(graph_bytes(text), providers=PROVIDERS)
    for values in ([0.0, 1.0, 2.0], [0.0, 0.0], []):
        x = torch.tensor(values, device="cuda")
        y = session.run({"x": x})["y"]
        assert torch.equal(y.cpu(), x.nonzero().t().cpu())


def test_what_torch_still_computes_is_waited_for():
    session = bridge.load(graph_bytes(NEG), providers=PROVIDERS)
    a = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        x = (a @ a @ a @ a)[0]  # queued when the session is called
        close(session.run({"x": x})["y"], -x)
    with torch.cuda.stream(torch.cuda.Stream()):
        x = (a @ a @ a @ a)[0]
        y = session.run({"x": x})["y"]
        close(y, -x)


def test_threads_share_a_session(mlp, say):
    module, program = mlp
    session = program.session(providers=PROVIDERS)
    wrong = []

    def work(number):
        x = torch.full((number + 1, 64), float(number), device="cuda")
        expected = module(x)
        for _ in range(50):
            if not torch.allclose(session(x), expected, rtol=1e-3, atol=1e-3):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(f"{len(wrong)} wrong of 800 runs")
    assert not wrong


def test_graphs_for_cuda_can_be_kept(mlp, tmp_path, say):
    module, program = mlp
    x = torch.randn(3, 64, device="cuda")
    for _ in range(3):
        session = bridge.Session(program, providers=PROVIDERS, cache=tmp_path)
        close(session(x), module(x))
        say(f"{len(list(tmp_path.iterdir()))} kept, {session.placement.share('cuda'):.1%} on CUDA")
        assert session.placement.share("cuda") == 1.0
    text = SCALE.replace("y = Mul(x, w)", "n = NonZero(x)\n y = Mul(x, w)")
    for _ in range(2):  # a graph with copies in it
        session = bridge.Session(graph_bytes(text), providers=PROVIDERS, cache=tmp_path)
        y = session.run({"x": torch.ones(2, 4, device="cuda"), "w": torch.ones(4)})["y"]
        assert (y == 1).all()


# CUDA graphs


def test_graphs_are_captured_for_shapes_that_come_again(mlp, say):
    module, program = mlp
    session = bridge.Session(program, providers=PROVIDERS, cuda_graphs=True)
    say(f"captures: {session.captures_graphs}, refusal: {session.graph_refusal}")
    for size in (1, 4, 1, 4, 1, 4, 7):
        x = torch.randn(size, 64, device="cuda")
        close(session(x), module(x))
    buckets = session._buckets
    say(f"{len(buckets._captured)} graphs, failure: {buckets.failure}")
    assert len(buckets._captured) == 2
    first = session(torch.ones(1, 64, device="cuda"))
    kept = first.clone()
    session(torch.zeros(1, 64, device="cuda"))
    assert torch.equal(first, kept)  # replays do not write over results that were handed out


def test_shapes_are_rounded_up_to_buckets(mlp):
    module, program = mlp
    session = bridge.Session(program, providers=PROVIDERS, cuda_graphs={"batch": (4, 16)})
    for size in (1, 2, 3, 4, 3, 2, 9, 16, 9, 40):
        x = torch.randn(size, 64, device="cuda")
        y = session(x)
        assert y.shape == x.shape
        close(y, module(x))
    assert len(session._buckets._captured) == 2


@pytest.mark.parametrize("text", [
    SLOW,  # a Loop cannot be captured
    "g(float[N] x) => (int64[1, M] y) { y = NonZero(x) }",  # the result's size is data
])  # fmt: skip
def test_models_that_cannot_be_captured_run_without(text, say):
    session = bridge.Session(graph_bytes(text), providers=PROVIDERS, cuda_graphs=True)
    plain = bridge.Session(graph_bytes(text), providers=PROVIDERS)
    feed = {"x": torch.rand(8, device="cuda")}
    if "n" in session.input_names:
        feed["n"] = torch.tensor(3)
    for _ in range(4):
        assert torch.allclose(session.run(feed)["y"], plain.run(feed)["y"])
    buckets = session._buckets
    say(f"refusal: {session.graph_refusal}, failure: {buckets and buckets.failure}")


# Decoding


def test_a_cache_is_written_in_place_under_a_graph(say):
    model = Decoder(SMALL).eval()
    example = (torch.tensor([[5]]), torch.tensor([0]), empty_cache(SMALL), empty_cache(SMALL))
    program = bridge.export(model, example, opset=20)
    session = bridge.Session(program, providers=PROVIDERS, cuda_graphs=True)
    say(f"captures: {session.captures_graphs}, refusal: {session.graph_refusal}")
    loop = session.bind(links(session), in_place=True)
    chained = program.session(providers=PROVIDERS).bind(
        links(session), initial=dict.fromkeys(links(session), empty_cache(SMALL)[0])
    )
    keys, values = empty_cache(SMALL), empty_cache(SMALL)
    token_name, at_name = session.input_names[:2]
    for step in range(SMALL.length):
        token, at = torch.randint(0, 99, (1, 1)), torch.tensor([step])
        expected, keys, values = model(token, at, keys, values)
        feed = {token_name: token.cuda(), at_name: at.cuda()}
        close(loop.run(feed)[session.output_names[0]].cpu(), expected)
        close(chained.run(feed)[session.output_names[0]].cpu(), expected)
    assert np.count_nonzero(next(iter(loop.state.values())))


def test_a_growing_cache_stays_on_the_device():
    text = """g(float[B, 1, 4] x, float[B, P, 4] past) => (float[B, 4] y, float[B, Q, 4] present)
    <int64[1] axes = {1}> {
        present = Concat <axis = 1> (past, x)
        y = ReduceSum <keepdims = 0> (present, axes)
    }"""
    loop = bridge.load(graph_bytes(text), providers=PROVIDERS).bind({"past": "present"})
    total = torch.zeros(2, 4, device="cuda")
    for _ in range(20):
        x = torch.rand(2, 1, 4, device="cuda")
        total += x[:, 0]
        close(loop.run({"x": x})["y"], total)
    assert loop._values["past"].device_name().lower() == "cuda"
    assert loop.state["past"].shape == (2, 20, 4)


# Providers


def test_cuda_alone_is_a_promise(mlp):
    _, program = mlp
    session = program.session(providers="cuda")
    session.require_placement(cuda=1.0, copies_in_loops=0)
    text = "g(string[N] x) => (string[N] y) { y = Identity(x) }"
    with pytest.raises(bridge.BridgeError):
        bridge.load(graph_bytes(text), providers="cuda")


def test_the_fastest_provider_is_measured(mlp, say):
    _, program = mlp
    session = bridge.load(program, providers="fastest")
    say(str(session.measured))
    assert set(session.measured) >= {"cpu", "cuda"}


@pytest.mark.skipif(
    "TensorrtExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="the runtime was built without TensorRT",
)
def test_tensorrt_runs_or_says_which_library_is_missing(mlp, say):
    module, program = mlp
    refusal = None
    try:
        session = program.session(providers="tensorrt,cuda,cpu")
    except bridge.ProviderError as error:
        refusal = error
    say(str(refusal))
    if refusal is None:
        x = torch.randn(2, 64, device="cuda")
        close(session(x), module(x))
    else:
        assert "tensorrt" in str(refusal)
        assert refusal.hint.startswith("pip install")


@pytest.mark.parametrize("hidden", ["device", "libraries"])
def test_a_provider_that_cannot_start_is_an_error(hidden, say):
    """ONNX Runtime itself would go on with the CPU."""
    environment = dict(os.environ)
    lines = [
        "import bridge, onnxruntime",
        "from tests.bridge.graphs import SCALE, graph_bytes",
        f"bridge.load(graph_bytes(SCALE), providers={PROVIDERS!r})",
    ]
    if hidden == "device":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:  # libraries that pip installed are found by preloading them
        lines.insert(1, "onnxruntime.preload_dlls = lambda *a, **k: None")
        environment["LD_LIBRARY_PATH"] = ""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment,
        check=False, timeout=300,
    )  # fmt: skip
    told = done.stderr.strip().split("\n")
    say("\n".join(told[-6:]))
    if hidden == "libraries" and done.returncode == 0:
        pytest.skip("the system's loader finds the CUDA libraries without help")
    assert "ProviderError: provider 'cuda' did not start" in done.stderr
    assert "hint:" in done.stderr


def test_doctor_knows_this_machine(say):
    diagnosis = diagnose()
    say(f"\n{diagnosis}")
    assert any(f.about == "provider cuda" and f.level == "ok" for f in diagnosis.findings)

"""Comparing arrays and models; what a report tells."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bridge
from bridge.parity.checking import check
from bridge.parity.comparison import Tolerance, compare
from bridge.parity.inputs import Case, generate, load_cases, save_cases, varied
from bridge.parity.matrix import check_matrix
from bridge.parity.report import plain
from tests.bridge.graphs import graph
from tests.bridge.zoo import exported

# Arrays

ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "told"),
    [
        (ONES, ONES.astype(np.float64), "dtype is float64 instead of float32"),
        (ONES, ONES[:1], "shape is [1, 3] instead of [2, 3]"),
        (
            ONES,
            np.where([True, False, True], np.nan, ONES).astype(np.float32),
            "4 of 6 values are not finite",
        ),
        (ONES * np.float32(np.inf), -ONES * np.float32(np.inf), "at [0, 0] -inf instead of inf"),
    ],
)
def test_what_is_no_difference_of_values_is_named_first(expected, got, told):
    row = compare("y", expected, got)
    assert not row.passed
    assert told in str(row)


@pytest.mark.parametrize("same", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_alike_pass(same):
    x = np.array([1.0, same])
    assert compare("y", x, x.copy()).passed


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16], ids=str)
def test_one_step_is_one_ulp_and_passes(dtype):
    x = np.array([[1.0, 3.0]], dtype)
    bits = x.view(f"u{x.dtype.itemsize}").copy()
    bits[0, 1] += 1
    row = compare("y", x, bits.view(x.dtype))
    assert row.ulps == 1
    assert row.passed
    assert row.top1 == 1.0


def test_the_largest_elements_are_compared():
    x = np.arange(20, dtype=np.float32).reshape(2, 10)
    assert compare("y", x, x.copy()).top5 == 1.0
    y = x.copy()
    y[0, 9] = -1  # one of the five largest of the first row is another now
    row = compare("y", x, y)
    assert row.top1 == 0.5
    assert row.top5 == 0.9
    assert compare("y", x[:, :5], x[:, :5]).top5 is None


def test_ulps_are_counted_across_zero():
    least = np.float32(1e-45)
    assert compare("y", np.array([least]), np.array([-least])).ulps == 2
    assert compare("y", np.array([0.0]), np.array([-0.0])).ulps == 0


def test_the_needed_tolerance_is_the_smallest_that_passes():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 50)).astype(np.float32)
    y = x + rng.standard_normal(x.shape).astype(np.float32) * np.float32(0.01)
    row = compare("y", x, y)
    assert not row.passed
    assert compare("y", x, y, Tolerance(1e-3, row.needed * 1.0001)).passed
    assert not compare("y", x, y, Tolerance(1e-3, row.needed * 0.9999)).passed


def test_small_values_are_not_lost_below_the_tolerance_of_large_ones():
    x = np.full(1000, 2e-5, np.float32)  # a softmax over many classes
    assert not compare("y", x, x * 2).passed


def test_integers_are_compared_exactly_however_large():
    x = np.array([2**60, 5])
    assert not compare("y", x, x + np.array([1, 0])).passed
    assert compare("y", x, x.copy()).passed
    assert compare("y", x, x + np.array([0, 1]), Tolerance(0, 1)).passed


def test_a_share_of_elements_may_be_off():
    x = np.arange(100)
    y = x.copy()
    y[7] = -1
    assert compare("y", x, y, Tolerance(0, 0, share=0.01)).passed
    y[8] = -1
    row = compare("y", x, y, Tolerance(0, 0, share=0.01))
    assert not row.passed
    assert row.off == 0.02


def test_large_arrays_are_compared_like_small_ones():
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    y = x.copy()
    y[150_000] += 1
    row = compare("y", x, y)
    assert row.worst == (150_000,)
    assert row.max_abs == pytest.approx(1, rel=1e-5)
    signal = float((x.astype(np.float64) ** 2).sum())
    assert row.snr == pytest.approx(10 * math.log10(signal), abs=0.1)
    assert row.mean_abs == pytest.approx(1 / 200_000, rel=1e-3)


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.array(3.0), np.array(["a", "b"]), ONES + 1j])
def test_odd_arrays_equal_themselves(x):
    row = compare("y", x, x.copy())
    assert row.passed
    json.dumps(plain(row.to_dict()), allow_nan=False, default=str)


# Models


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale: float = 1.0):
        return {"logits": self.drop(self.norm(self.linear(x))) * scale, "sum": x.sum(-1)}


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_var.fill_(0.25)
    x = torch.randn(5, 4)
    return model, x, bridge.export(model, x, dynamic_shapes={"x": {0: "batch"}})


def test_eager_agrees_on_other_sizes_and_values(net):
    model, x, program = net
    report = check(model, program, x, vary=True)
    assert report.passed
    labels = {c.label for c in report.cases}
    assert {"given inputs", "batch=1", "batch=0", "zeros", "large values"} <= labels
    assert {c.name for c in report.cases[0].comparisons} == {"logits", "sum"}


@pytest.mark.parametrize("form", ["tensor", "tuple", "feed", "list", "npz", "none"])
def test_inputs_may_come_in_any_form(net, form, tmp_path):
    model, x, program = net
    path = str(tmp_path / "inputs.npz")
    save_cases(path, [Case("a", {"x": x.numpy()}), Case("b", {"x": x.numpy() * 2})])
    inputs = {
        "tensor": x, "tuple": (x,), "feed": {"x": x}, "list": [(x,), (x * 2,)], "npz": path,
        "none": None,
    }[form]  # fmt: skip
    report = check(model, program, inputs)
    assert report.passed
    assert len(report.cases) == (2 if form in ("list", "npz") else 1)
    session_report = check(program, program.session(), inputs)
    assert session_report.passed
    assert len(session_report.cases) == len(report.cases)


def test_eager_code_is_left_as_it_was(net):
    model, x, program = net
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    check(model, program, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert model.drop.training


def test_train_mode_is_told(net):
    model, x, program = net
    model.train()
    report = check(model, program, x, locate=False)
    assert not report.passed
    assert any(
        v.startswith("eager is in train mode") and "it agrees" in v for v in report.verdicts
    )
    with pytest.raises(bridge.ParityError, match="train mode"):
        report.raise_for_mismatch()


def test_stale_weights_are_told(net):
    model, x, program = net
    with torch.no_grad():
        model.linear.weight = nn.Parameter(model.linear.weight + 1)
    report = check(model, program, x)
    assert any("1 weight of the graph is not eager's: linear.weight" in v for v in report.verdicts)
    assert report.divergence.module == "linear"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x * 255, "is scaled by 255"),
        (lambda x: x / 255, "is divided by 255"),
        (lambda x: x * 2 - 1, "is mapped from 0..1 to -1..1"),
        (lambda x: x.flip(1), "channels reversed"),
        (lambda x: x.transpose(-1, -2), "is transposed in its last two dims"),
    ],
)
def test_differing_preprocessing_is_told(change, told):
    def model(image):
        return torch.tanh(image).cumsum(1).cumsum(-1)

    image = torch.rand(1, 3, 4, 4)
    program = bridge.export(model, image)
    report = check(lambda image: model(change(image)), program, image, locate=False)
    assert not report.passed
    assert any("preprocessing differs" in v and told in v for v in report.verdicts)


def test_chance_is_told():
    noise = iter(range(1, 10_000))

    def model(x):
        return x * 2 + float(next(noise))

    x = torch.ones(3)
    program = bridge.export(lambda x: x * 2, x)
    report = check(model, program, x, locate=False)
    assert any("not deterministic" in v for v in report.verdicts)


def test_another_way_in_an_export_is_told():
    def told(x):
        return x + 1 if torch.compiler.is_exporting() else x - 1

    program = bridge.export(told, torch.ones(3))
    report = bridge.check(told, program, torch.ones(3))
    assert "is_exporting() tells it of an export" in report.verdicts[0]


def test_float64_judges_disputes():
    """Summing in another order differs from eager, which is no better."""
    text = "g(float[1, 4096] x) => (float[1, 1] y) <int64[1] axes = {1}> {y = ReduceSum(x, axes)}"
    x = torch.randn(1, 4096, dtype=torch.float64)
    x = (x - x.mean()).float()

    def model(x):
        return (
            torch.stack([x[0, i] for i in range(x.shape[1])]).flip(0).cumsum(0)[-1:].reshape(1, 1)
        )

    strict = Tolerance(0, 1e-9)
    row = (
        check(model, bridge.Session(graph(text)), x, tolerance=strict, locate=False)
        .cases[0]
        .comparisons[0]
    )
    if row.max_abs == 0:
        pytest.skip("both sum alike on this machine")
    assert "off float64 by" in row.judged
    unjudged = check(
        model, bridge.Session(graph(text)), x, tolerance=strict, judge=False, locate=False
    )
    assert unjudged.cases[0].comparisons[0].judged is None
    assert not unjudged.passed


def test_the_judge_does_not_pass_what_is_wrong(net):
    model, x, _ = net
    program = bridge.export(lambda x: {"logits": model(x)["logits"] * 1.01, "sum": x.sum(-1)}, x)
    report = check(model, program, x, locate=False)
    assert not report.passed
    assert "eager by" in report.cases[0].comparisons[0].judged


def test_tolerances_may_differ_by_output(net):
    model, x, _ = net
    program = bridge.export(lambda x: {"logits": model(x)["logits"] * 1.01, "sum": x.sum(-1)}, x)
    loose = {"logits": Tolerance(0.05, 0.05)}
    assert check(model, program, x, tolerance=loose).passed


def test_a_task_metric_takes_the_place_of_tolerances(net):
    model, x, _ = net
    program = bridge.export(lambda x: {"logits": model(x)["logits"] * 1.5, "sum": x.sum(-1)}, x)

    def accuracy(outputs):
        return float((outputs["logits"].argmax(-1) == 0).mean())

    assert check(model, program, [(x,), (x * 2,)], metric=accuracy, locate=False).passed
    worse = bridge.export(lambda x: {"logits": -model(x)["logits"], "sum": x.sum(-1)}, x)
    report = check(
        model,
        worse,
        x,
        metric=lambda o: float(o["logits"].sum()) ** 2 * 0 + float(o["logits"][0, 0]),
        locate=False,
    )
    assert report.metric[0] == pytest.approx(-report.metric[1], rel=1e-4)


def test_a_session_that_fails_where_eager_runs_is_no_pass():
    fixed = bridge.export(lambda x: x.reshape(2, 2) * 2, torch.ones(4))
    report = check(lambda x: x.reshape(2, 2) * 2, fixed, [(torch.ones(4),)])
    assert report.passed
    session = bridge.Session(
        graph(
            "g(float[N] x) => (float[2, 2] y) <int64[2] s = {2, 2}, float k = {2.0}> "
            "{r = Reshape(x, s)\n y = Mul(r, k)}"
        )
    )
    report = check(lambda x: x.reshape(2, -1) * 2, session, torch.ones(6), locate=False)
    assert not report.passed
    assert "fails where the reference runs" in str(report)


def test_another_number_of_outputs_is_told(net):
    model, x, _ = net
    session = bridge.Session(graph("g(float[B, 4] x) => (float[B, 4] y) {y = Neg(x)}"))
    with pytest.raises(bridge.FeedError, match="eager code returns 2 tensors, the model has 1"):
        check(model, session, x)


def test_models_from_elsewhere_are_matched_by_position():
    session = bridge.Session(
        graph("g(float[B, 4] a, float[4] b) => (float[B, 4] c) {c = Mul(a, b)}")
    )
    assert check(lambda x, w: x * w, session, (torch.randn(2, 4), torch.randn(4))).passed
    assert check(lambda x, w: x * w, session).passed
    other = bridge.Session(
        graph("g(float[B, 4] p, float[4] q) => (float[B, 4] r) {r = Mul(q, p)}")
    )
    assert check(session, other, (torch.randn(2, 4), torch.randn(4))).passed


def test_reports_are_for_people_machines_and_ci(net):
    model, x, program = net
    good = check(model, program, x)
    assert "parity passed" in str(good)
    bad = check(lambda x: {"logits": x, "sum": x.sum(-1)}, program, x, locate=False)
    for report in (good, bad):
        data = json.loads(json.dumps(plain(report.to_dict()), allow_nan=False))
        assert data["passed"] == report.passed
        suite = ElementTree.fromstring(report.to_junit().split("\n", 1)[1])
        assert suite.get("failures") == str(int(not report.passed))
        assert (suite.find("testcase/failure") is None) == report.passed
    assert "shape is [5, 3] instead of [5, 4]" in str(bad)


def test_the_matrix_covers_levels_and_opsets():
    model, args, _ = exported("encoder")
    matrix = check_matrix(
        model, None, args, optimizations=("none", "extended", "all"), opsets=(17, 23)
    )
    assert matrix.passed
    assert len(matrix.cells) == 6
    assert {c.opset for c in matrix.cells} == {17, 23}
    matrix.raise_for_mismatch()
    assert len(ElementTree.fromstring(matrix.to_junit().split("\n", 1)[1])) == 6


def test_the_matrix_covers_passes():
    model, args, program = exported("encoder")
    matrix = check_matrix(model, None, args, opsets=(20, 23), passes=("none", "cpu", "portable"))
    assert matrix.passed, str(matrix)
    assert len(matrix.cells) == 12
    assert {c.passes for c in matrix.cells} == {None, "cpu", "portable"}
    assert "opset 20, passes for portable" in str(matrix)
    matrix = check_matrix(program, program, args, passes=("cpu", "abacus"), optimizations=("all",))
    assert [c.passed for c in matrix.cells] == [True, False]
    assert "abacus" in matrix.cells[1].error


def test_other_branches_are_taken():
    model, args, program = exported("router")
    labels = [c.label for c in check(model, program, args, vary=True).cases]
    assert any(c.startswith("another branch: ") for c in labels)
    wrong = program.model.clone()
    branch = next(n for n in wrong.graph if n.op_type == "If").attributes["else_branch"].value
    next(n for n in branch if n.op_type == "Cos").op_type = "Sin"
    assert check(model, bridge.Session(wrong), args).passed  # rand() takes the other branch
    report = check(model, bridge.Session(wrong), args, vary=True)
    assert not report.passed
    assert report.divergence.op_type == "Sin"


def test_the_matrix_tells_what_it_cannot_run():
    model, args, program = exported("router")
    matrix = check_matrix(model, program, args, providers=("cpu", "cuda"), optimizations=("all",))
    if "CUDAExecutionProvider" not in bridge.providers.available():
        assert [c.passed for c in matrix.cells] == [True, False]
        assert "'cuda' is not there" in matrix.cells[1].error
        with pytest.raises(bridge.ParityError):
            matrix.raise_for_mismatch()


# Inputs


def test_inputs_are_made_up_from_declarations():
    session = bridge.Session(
        graph("g(float[B, 4] x, int64[B] i, bool f) => (float[B, 4] y) {y = Neg(x)}")
    )
    feed = generate(session.inputs, sizes={"B": 3})
    assert feed["x"].shape == (3, 4)
    assert set(feed["i"]) <= {0, 1}
    assert feed["f"].dtype == bool
    again = generate(session.inputs, sizes={"B": 3})
    assert all(np.array_equal(feed[n], again[n]) for n in feed)


def test_varied_inputs_keep_integers_valid():
    session = bridge.Session(
        graph("g(float[B, L] x, int64[B, L] i) => (float[B, L] y) {y = Neg(x)}")
    )
    feed = {"x": np.ones((2, 3), np.float32), "i": np.array([[7, 8, 9], [7, 7, 7]])}
    cases = list(varied(session.inputs, feed))
    assert {c.feed["x"].shape for c in cases} >= {(1, 3), (2, 1), (0, 3), (3, 5)}
    assert all(set(c.feed["i"].flat) <= {7, 8, 9} for c in cases)
    assert all(c.feed["x"].shape == c.feed["i"].shape for c in cases)


def test_cases_survive_a_file(tmp_path):
    path = str(tmp_path / "cases.npz")
    save_cases(path, [Case("a b", {"x.0": ONES}), Case("c", {"x.0": ONES * 2})])
    assert [(c.label, c.feed["x.0"].sum()) for c in load_cases(path)] == [("a b", 6), ("c", 12)]
    np.savez(path, x=ONES)
    assert load_cases(path)[0].feed["x"].sum() == 6


@pytest.mark.parametrize(("inner", "passed"), [("FLOAT", True), ("DOUBLE", False)])
def test_an_output_is_as_exact_as_what_leads_to_it(inner, passed):
    """float64 numbers that were float32 on the way are compared as float32 is."""
    code = int(ir.DataType[inner])
    text = f"""g(double[N] x) => (double[N] y) {{
        a = Cast <to = {code}> (x)
        b = Exp(a)
        y = Cast <to = 11> (b)
    }}"""
    off = text.replace("y = Cast <to = 11> (b)", "c = Cast <to = 11> (b)\n y = Mul(c, k)")
    off = off.replace("(double[N] y) {", "(double[N] y) <double k = {1.000001}> {")
    feed = {"x": np.linspace(-1, 1, 9)}
    report = check(graph(text), bridge.Session(graph(off)), feed)
    assert report.passed == passed
    told = bridge.Tolerance(1e-7, 1e-9)
    assert not check(graph(text), bridge.Session(graph(off)), feed, tolerance=told).passed


def test_a_mask_hides_no_error_beside_it():
    expected = np.array([[0.5, -1e9], [1.5, 0.25]], np.float32)
    got = expected + np.array([[0, 64], [0.1, 0]], np.float32)
    row = compare("scores", expected, got)
    assert not row.passed
    assert row.worst == (1, 0)
    assert compare(
        "large", np.array([1e9, 3e6], np.float32), np.array([1e9, 3e6 + 9e3], np.float32)
    ).passed

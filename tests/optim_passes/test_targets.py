"""Targets: opset, IR version and operators that a deployed runtime knows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import bridge
from bridge import kernels
from bridge.kernels import installed_kernels, kernel_table, known_versions
from bridge.targets import Target, parse_target
from optim_passes.fusion.masks import UnseenRowsPass
from optim_passes.older_opsets import LowerOpsetPass
from optim_passes.pipeline import run
from tests.optim_passes.running import feed_for, ops, optimise, parse, session, since_1_28

VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("cpu", Target("cpu")),
        ("portable", Target("portable")),
        ("onnxruntime==1.24,cuda", Target("cuda", (1, 24))),
        ("onnxruntime==1.24.4, cpu", Target("cpu", (1, 24))),
        ("onnxruntime-gpu==1.24,cuda", Target("cuda", (1, 24))),
        ("onnxruntime", Target("cpu")),
        ("ort 1.23", Target("cpu", (1, 23))),
    ],
)
def test_targets_are_read(text, target):
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["gpu", "", "cpu,cuda", "onnxruntime==1.24,tensorrt", "onnxruntime==1.2"]
)
def test_what_is_no_target_is_told(text):
    with pytest.raises(bridge.TargetError, match="hint: "):
        parse_target(text)


def told_kernels():
    try:
        return installed_kernels()
    except bridge.RunError as error:
        pytest.skip(str(error))


def test_the_table_says_what_the_installed_runtime_says():
    """If this fails after an upgrade, run ``python -m bridge.kernels``."""
    if VERSION not in known_versions():
        pytest.skip(f"ONNX Runtime {VERSION} is not in the table")
    told, table = told_kernels(), kernel_table(VERSION)
    assert (told["opset"], told["ir_version"]) == (table.opset, table.ir_version)
    for name, rows in told["kernels"]["cpu"].items():
        known = {(k.first, k.last or 0) for k in table.kernels["cpu"][name]}
        assert known == {(first, last) for first, last, _ in rows}, name


def test_tables_of_several_runtimes_are_merged_and_taken_apart():
    row = [1, 0, {"T": ["float"]}]
    old = {"version": "1.9", "opset": 15, "ir_version": 8, "kernels": {"cpu": {":Neg": [row]}}}
    new = {**old, "version": "1.10", "opset": 16,
           "kernels": {"cpu": {":Neg": [row], ":Abs": [row]}, "cuda": {":Abs": [row]}}}  # fmt: skip
    merged = kernels._merged([new, old])
    assert merged["order"] == ["1.9", "1.10"]
    assert merged["kernels"]["cpu"][":Neg"] == [[1, 0, {"T": 0}, 0, 1]]
    assert kernels._unmerged(merged) == [old, new]
    assert kernels._merged(kernels._unmerged(merged)) == merged


def test_unknown_versions_are_taken_for_the_nearest_older_one():
    assert kernel_table((99, 0)).version == known_versions()[-1]
    assert kernel_table((1, 24)).version == (1, 24)


@pytest.mark.parametrize("version", known_versions())
def test_exports_are_of_an_opset_that_the_target_knows(version):
    target = Target("cpu", version)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.GroupNorm(2, 8)).eval()
    program = bridge.export(model, torch.ones(1, 3, 8, 8), target=target, optimize=True)
    table = kernel_table(version)
    assert program.model.graph.opset_imports[""] <= table.opset
    assert program.model.ir_version <= table.ir_version
    assert target.failure(program.model) is None
    assert program.report.verified[0].passed


def test_operators_without_kernels_are_named_at_the_export(monkeypatch):
    known = kernel_table((1, 24))
    without = {k: v for k, v in known.kernels["cpu"].items() if k != ":Erf"}
    table = dataclasses.replace(known, kernels={"cpu": without})
    monkeypatch.setattr("bridge.targets.kernel_table", lambda _: table)

    class Errors(nn.Module):
        def forward(self, x):
            return torch.erf(x)

    model = nn.Sequential(Errors(), nn.ReLU()).eval()
    with pytest.raises(bridge.TargetError, match=r"no kernel for 1 Erf-13 \(float\).* in 0"):
        bridge.export(model, torch.ones(3), target="onnxruntime==1.24,cpu")


def test_operators_without_kernels_are_named():
    model = parse("""g (double[3] x) => (double[3] z) {
        y = Erf(x)
        z = Softplus(y)
    }""")
    with pytest.raises(bridge.TargetError) as caught:
        bridge.optimize(model)
    assert "no kernel for 1 Erf-13 (double) (first 'Erf'), 1 Softplus-1 (double)" in str(
        caught.value
    )
    assert "convert the model to float32" in str(caught.value)
    assert bridge.optimize(model, target="portable", verify=False)


def test_types_of_the_runtime_s_own_operators_are_looked_at():
    model = parse("""g (double[2, 2] x) => (double[2, 2] y) {
        y = com.microsoft.FusedMatMul(x, x)
    }""")
    assert [m.operator for m in Target("cpu", (1, 25)).missing(model)] == [
        "com.microsoft.FusedMatMul-1 (double)"
    ]
    assert not Target("cpu", (1, 26)).missing(model)


def test_operators_without_kernels_are_named_in_bodies_too():
    model = parse("""g (double[3] x, bool c) => (double[3] z) {
        z = If (c) <then_branch = a () => (double[3] u) { u = Erf(x) },
                    else_branch = b () => (double[3] v) { v = Neg(x) }>
    }""")
    with pytest.raises(bridge.TargetError, match="1 Erf-13"):
        bridge.optimize(model)


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("g (float[2, 8] x) => (float[2, 8] y) { y = HardSwish(x) }", 20),
        ("g (float[2, 8] x, float[8] s) => (float[2, 8] y) { y = RMSNormalization(x, s) }", 23),
        ("g (float16[4] x) => (float16[4] y) { y = Softplus(x) }", 20),
        (
            "g (float[1] x) => (float[1] y) { a = Constant <value_float = 1.0> ()\n y = Add(x, a) }",
            20,
        ),
        (
            "g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) { y = MeanVarianceNormalization(x) }",
            20,
        ),
    ],
)
def test_functions_and_widened_types_run_without_kernels_of_their_own(text, opset):
    """ONNX Runtime puts a function's body in its place, and widens float16 on the CPU."""
    model = parse(text, opset=opset)
    assert Target("cpu").missing(model) == []
    session(model)


def test_an_opset_without_kernels_is_lowered():
    """ONNX Runtime 1.32 has kernels of RandomNormal for opsets up to 21 only."""
    model = parse("g () => (float[3] y) { y = RandomNormal <shape = [3]> () }", opset=22)
    target = Target("cpu", (1, 32))
    assert target.missing(model)
    program = bridge.optimize(model, target=target)
    assert program.model.graph.opset_imports[""] == 21
    assert model.graph.opset_imports[""] == 22


def test_opsets_are_lowered_where_nothing_new_is_used():
    model = parse(
        """g (float[N, 4] x, bool c) => (float[N, 4] y) {
        s = Shape(x)
        r = Reshape(x, s)
        y = If (c) <then_branch = a () => (float[N, 4] u) { u = Neg(r) },
                    else_branch = b () => (float[N, 4] v) { v = Abs(r) }>
    }""",
        opset=23,
    )
    lowered, report = run(model.clone(), [LowerOpsetPass(17)])
    assert report.refusals == []
    assert lowered.graph.opset_imports[""] == 17
    feed = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(
        session(lowered).run(None, feed)[0], session(model).run(None, feed)[0]
    )


@pytest.mark.parametrize(
    ("text", "opset", "to", "why"),
    [
        ("y = Gelu(x)", 20, 19, "opset 19 has no Gelu"),
        ("y = ReduceMax(x, a)", 18, 17, "takes no 2 operands"),
        (
            "h = Cast <to = 16> (x)\n i = Elu(h)\n y = Cast <to = 1> (i)",
            22,
            21,
            "has no tensor(bfloat16)",
        ),
        ("y = AveragePool <kernel_shape = [1]> (x)", 19, 18, "means something else"),
        ("y = Reshape <allowzero = 1> (x, a)", 14, 13, "has no allowzero"),
        ("y = Neg(x)", 20, 12, "opset 12 is older than 13"),
    ],
)
def test_what_an_older_opset_lacks_is_refused(text, opset, to, why):
    model = parse(
        f"g (float[1, 1, 4] x, int64[1] a) => (float[A, B, C] y) {{ {text} }}", opset=opset
    )
    _, report = run(model, [LowerOpsetPass(to)])
    assert any(why in r.reason for r in report.refusals), report.refusals
    assert model.graph.opset_imports[""] == opset


def test_a_newer_opset_than_the_runtime_s_is_told():
    model = parse(
        "g (float[1, 2, 3, 8] q) => (float[1, 2, 3, 8] y) { y = Attention(q, q, q) }", opset=23
    )
    with pytest.raises(bridge.TargetError, match="opset 22 has no Attention") as caught:
        bridge.optimize(model, target="onnxruntime==1.22")
    assert "opset=22" in str(caught.value)


def test_passes_go_to_no_opset_that_the_runtime_lacks():
    model = parse("g (float[3] x) => (float[3] y) { a = Neg(x)\n y = Neg(a) }", opset=17)
    program = bridge.optimize(model, target="onnxruntime==1.20")
    assert program.model.graph.opset_imports[""] <= 21
    assert ops(program.model) == {"Identity": 1} or "Neg" in ops(program.model)


def test_the_script_needs_no_table(tmp_path, monkeypatch):
    """It makes the table, so it must not read one."""
    monkeypatch.setattr(kernels, "_TABLE", tmp_path / "kernels.json")
    told_kernels()
    kernels.main([])
    first = (tmp_path / "kernels.json").read_text()
    kernels.main([])
    assert (tmp_path / "kernels.json").read_text() == first


@pytest.mark.parametrize(("target", "operands"), [("cpu", 4), ("onnxruntime==1.27", 3)])
def test_residuals_are_added_apart_where_the_runtime_forgets_them(target, operands):
    """ONNX Runtime before 1.28 drops the residual of a FusedConv in its blocked layout."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return torch.relu(self.conv(x) + x)

    x = torch.randn(2, 8, 6, 6)
    program = bridge.export(Residual().eval(), x, target=target, optimize=True)
    found = [n for n in program.model.graph if "Conv" in n.op_type]
    assert all(len(n.inputs) <= operands for n in found)
    assert ("Add" in ops(program.model)) == (operands == 3)


class Masked(nn.Module):
    """Attention to what a mask allows, which may be nothing."""

    def forward(self, x, mask):
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.parametrize("target", ["onnxruntime==1.24", "portable"])
@pytest.mark.parametrize("kind", ["boolean", "numbers"])
def test_attention_to_nothing_is_zero_where_kernels_leave_it_open(target, kind):
    """ONNX Runtime before 1.28 gives the mean of all values, or NaN."""
    allowed = torch.tensor([[[True, False], [False, False]], [[True, True], [True, False]]])
    mask = allowed if kind == "boolean" else torch.where(allowed, 0.0, -torch.inf)
    mask = mask[:, None]
    x = torch.randn(2, 3, 2, 4)
    program = bridge.export(
        Masked().eval(),
        (x, mask),
        target=target,
        optimize=True,
        dynamic_shapes=({0: "b"}, {0: "b"}),
    )
    counts = ops(program.model)
    assert counts["Attention"] == counts["ReduceMax"] == 1
    torch.testing.assert_close(program(x, mask), Masked()(x, mask))
    plain = bridge.export(Masked().eval(), (x, mask), target=target)
    assert ops(plain.model)["ReduceMax"] == 1
    assert "ReduceMax" not in ops(
        bridge.export(Masked().eval(), (x, mask), target="onnxruntime==1.28").model
    )


@since_1_28
@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ("B,S,8", "S,T"), ("B,S,8", "B,1,S,T"), ("B,S,8", "B,2,S,T"), ("B,S,8", "2,S,T"),
        ("B,2,S,4", "S,T"), ("B,2,S,4", "1,2,S,T"), ("B,2,S,4", "2,S,T"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bool", "float"])
def test_rows_that_see_nothing_are_found_in_masks_of_any_rank(shape, mask, dtype):
    keys = shape.replace("S", "T")
    heads = "<q_num_heads = 2, kv_num_heads = 2>" if shape.count(",") == 2 else ""
    model = parse(
        f"g (float[{shape}] q, float[{keys}] k, {dtype}[{mask}] m) => (y) "
        f"{{ y = Attention{heads}(q, k, k, m) }}",
        opset=23,
    )
    sizes = {"B": 3, "S": 4, "T": 5}
    feed = feed_for(model, sizes)
    hidden = np.random.default_rng(1).random(feed["m"].shape) < 0.5
    hidden[..., 1, :] = True
    feed["m"] = ~hidden if dtype == "bool" else np.where(hidden, -np.inf, feed["m"])
    feed["m"] = feed["m"].astype(bool if dtype == "bool" else np.float32)
    counts, _ = optimise(model, UnseenRowsPass(), feeds=[feed])
    assert counts["Attention"] == counts["ReduceMax"] == 1


@pytest.mark.parametrize(
    "mask",
    [
        "m = Where(c, zero, low)", "m = Max(x, low)", "n = Max(x, low) m = Unsqueeze(n, one)",
        "n = Where(c, zero, low) m = Expand(n, whole)",
    ],
)  # fmt: skip
def test_masks_that_hide_no_row_need_no_guard(mask):
    model = parse(
        "g (float[1,2,3,4] q, bool[3,3] c, float[3,3] x) => (y) <float zero = {0}, float low = {-1e9}, "
        f"int64[1] one = {{0}}, int64[2] whole = {{3,3}}> {{ {mask} y = Attention(q, q, q, m) }}",
        opset=23,
    )
    counts, _ = optimise(model, UnseenRowsPass())
    assert "ReduceMax" not in counts

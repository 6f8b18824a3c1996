"""Optimised, the zoo's models agree with eager code: after each pass alone, and after pipelines."""

import copy
import functools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import bridge
from bridge.program import Program
from bridge.targets import fitted
from optim_passes.pipeline import leaves, pass_name, run
from optim_passes.pipelines import CPU as NEWEST
from optim_passes.pipelines import PORTABLE
from tests import torchvision_shim
from tests.zoo.models import ZOO
from tests.zoo.test_zoo import leaves as tensors

torchvision_shim.install()  # transformers imports torchvision, too

CPU = fitted(NEWEST)
PIPELINES = {"cpu": CPU, "portable": PORTABLE}
QUICK = ("bert", "llama_with_cache", "unet", "seq2seq", "wavenet", "t5")


@functools.lru_cache(maxsize=1)
def exported(name):
    """The eager model and its program; biases that are all 0 would fold away."""
    entry = ZOO[name]
    model = entry.make().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    args, kwargs = entry.inputs(**entry.example)
    dynamic = entry.dynamic
    if dynamic is not None and args and set(dynamic) == {"x"}:
        dynamic = (dynamic["x"],)
    examples = None if entry.second is None else [entry.inputs(**entry.second)]
    program = bridge.export(model, args, kwargs=kwargs, dynamic_shapes=dynamic, examples=examples)
    expected = []
    for sizes in (entry.example, *entry.others):
        args, kwargs = entry.inputs(**sizes)
        with torch.no_grad():
            expected.append(tensors(model(*copy.deepcopy(args), **copy.deepcopy(kwargs))))
    return program, ir.to_proto(program.model), expected


def _told(what, sizes, message):
    return f"{what} at {sizes}: {message}"


def check(name, proto, program, expected, what):
    """The model is valid and gives what eager code gives, at every size."""
    onnx.checker.check_model(proto)
    entry = ZOO[name]
    ran = Program(ir.from_proto(proto), program.signature, program.report)
    for sizes, wanted in zip((entry.example, *entry.others), expected, strict=True):
        args, kwargs = entry.inputs(**sizes)
        for got, want in zip(tensors(ran(*args, **kwargs)), wanted, strict=True):
            assert got.shape == want.shape
            if not want.is_floating_point():
                assert torch.equal(got, want), what
                continue
            finite = want[want.isfinite()]
            scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
            torch.testing.assert_close(
                got,
                want,
                rtol=1e-3,
                atol=entry.rtol * scale,
                msg=functools.partial(_told, what, sizes),
            )


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=pytest.mark.slow if target not in quick else ())
        for name in ZOO
        for target in PIPELINES
        for quick in [PIPELINES if name in QUICK else ("cpu",)]
    ],
)
def test_pipeline_agrees_with_eager(name, target):
    program, proto, expected = exported(name)
    model, _ = run(ir.from_proto(proto), PIPELINES[target])
    check(name, ir.to_proto(model), program, expected, target)


def each_pass_alone(name):
    program, proto, expected = exported(name)
    done = set()
    for target, pipeline in PIPELINES.items():
        for pass_ in leaves(pipeline):
            form = (pass_name(pass_), tuple(sorted(map(str, vars(pass_).items()))))
            if form in done:
                continue
            done.add(form)
            result = pass_(ir.from_proto(proto))
            if result.modified:
                check(name, ir.to_proto(result.model), program, expected, f"{form[0]} of {target}")


@pytest.mark.parametrize("name", QUICK)
def test_each_pass_alone_agrees_with_eager(name):
    each_pass_alone(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ZOO if n not in QUICK])
def test_each_pass_alone_agrees_with_eager_on_the_whole_zoo(name):
    each_pass_alone(name)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("name", list(ZOO))
def test_the_model_is_right_after_every_step_of_a_pipeline(name, target):
    program, proto, expected = exported(name)

    def checked(pass_, model):
        result = pass_(model)
        if result.modified:
            proto = ir.to_proto(result.model)
            check(name, proto, program, expected, f"after {pass_name(pass_)} of {target}")
        return result

    run(ir.from_proto(proto), PIPELINES[target], apply=checked)


def test_onnx_runtime_without_its_own_optimisers_agrees():
    _, proto, expected = exported("bert")
    model, _ = run(ir.from_proto(proto), CPU)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    args, kwargs = ZOO["bert"].inputs(**ZOO["bert"].example)
    names = [v.name for v in session.get_inputs()]
    feed = {n: np.asarray(x) for n, x in zip(names, (*args, *kwargs.values()), strict=True)}
    np.testing.assert_allclose(session.run(None, feed)[0], expected[0][0], rtol=1e-3, atol=1e-4)

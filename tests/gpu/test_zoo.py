"""The zoo on CUDA: parity with the CPU and with eager code on both, and what runs where."""

from __future__ import annotations

import copy

import pytest
import torch

import bridge
from bridge.parity.checking import check
from tests.gpu.machine import ON_GPU, PROVIDERS
from tests.zoo.models import ZOO

pytestmark = ON_GPU


def exported(name, opset):
    """A model, its arguments, and its program."""
    entry = ZOO[name]
    model = entry.make().eval()
    args, kwargs = entry.inputs(**entry.example)
    dynamic = entry.dynamic
    if dynamic is not None and args and set(dynamic) == {"x"}:
        dynamic = (dynamic["x"],)  # whatever forward calls its input
    examples = None if entry.second is None else [entry.inputs(**entry.second)]
    program = bridge.export(
        model, args, kwargs=kwargs, dynamic_shapes=dynamic, examples=examples, opset=opset,
        verify=False,
    )  # fmt: skip
    return model, args, kwargs, program


def explained(report, say):
    """Whether two sides agree, or the report says which node differs and why."""
    worst = report.worst
    say(
        f"{'ok' if report.passed else 'DIFFERS'}: {report.candidate} / {report.reference}: {worst}"
    )
    if report.passed:
        return True
    say(str(report))
    return report.divergence is not None and bool(report.verdicts)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", list(ZOO))
def test_cuda_agrees_and_runs_on_cuda(name, opset, say):
    model, args, kwargs, program = exported(name, opset)
    session = program.session(providers=PROVIDERS)
    agreed = explained(check(model, session, args, kwargs=kwargs), say)
    on_cpu = program.session()
    agreed &= explained(check(on_cpu, session, feed(session, args, kwargs)), say)
    on_cuda, on_device = copy.deepcopy(model).cuda(), moved(args, kwargs)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        agreed &= explained(check(on_cuda, session, on_device[0], kwargs=on_device[1]), say)
    session.profile(feed(session, args, kwargs), runs=1)
    placed = session.placement
    elsewhere = [n for n in placed.nodes.get("cpu", []) if n not in set(placed.shape_nodes)]
    say(
        f"{placed.share('cuda'):.1%} on CUDA, {len(placed.copies)} copies; on the CPU: {elsewhere}"
    )
    assert agreed
    if opset == 20:  # newer operators may lack a CUDA kernel in older runtimes
        assert placed.share("cuda") >= 0.99
        session.require_placement(cuda=0.99, copies_in_loops=0)


def moved(args, kwargs):
    """The arguments on CUDA, but for the lengths of packed sequences."""
    from exporters.pytorch.inputs import is_leaf
    from exporters.tracing.pytree import flatten

    leaves, tree = flatten((tuple(args), kwargs), is_leaf)
    for index, x in enumerate(leaves):
        is_length = isinstance(x, torch.Tensor) and x.dim() == 1 and x.dtype == torch.int64
        if isinstance(x, torch.Tensor) and not is_length:
            leaves[index] = x.cuda()
    return tree.unflatten(leaves)


def feed(session, args, kwargs):
    """The arguments by the names of the session's inputs."""
    return dict(zip(session.input_names, session.flatten(args, kwargs), strict=True))


@pytest.mark.parametrize("name", ["resnet50", "bert"])
def test_tensor_float_is_an_option_whose_errors_are_explained(name, say):
    """Products rounded to 10 bits differ from float32: what differs is the provider's kernels."""
    model, args, kwargs, program = exported(name, 20)
    session = program.session(providers="cuda(use_tf32=1),cpu")
    report = check(model, session, args, kwargs=kwargs)
    say(f"{'agrees' if report.passed else 'differs'}: {report.worst}; {report.verdicts}")
    assert report.passed or any("CPU agrees, cuda does not" in v for v in report.verdicts)

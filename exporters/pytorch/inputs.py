"""The model's arguments: named, taken apart, cloned, and resized for the other worlds."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.errors import InputError
from exporters.tracing.pytree import Tree, flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.worlds import Symbol

__all__ = [
    "Arguments", "bind", "is_leaf", "is_ordered", "modules_of", "named_tensors", "resize",
    "unwrapped",
]  # fmt: skip


def is_leaf(x: Any) -> bool:
    """Tensors, and the numbers that may become inputs."""
    return isinstance(x, torch.Tensor | np.ndarray | bool | int | float)


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """One example of the model's arguments.

    Attributes:
        leaves: Tensors and numbers in order.
        tree: The structure: a dict by parameter name.
        names: A name for each leaf, from its path: ``past.0.key``.
        signature: The model's parameters, if Python knows them.
    """

    leaves: list[Any]
    tree: Tree
    names: list[str]
    signature: inspect.Signature | None

    @property
    def gathering(self) -> tuple[str | None, str | None]:
        """The parameters that gather further positional and further keyword arguments."""
        kinds = {
            p.kind: name
            for name, p in (self.signature.parameters if self.signature else {}).items()
        }
        return kinds.get(inspect.Parameter.VAR_POSITIONAL), kinds.get(
            inspect.Parameter.VAR_KEYWORD
        )

    def call(self, model: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        """Call the model with other leaves in the same structure."""
        args, kwargs = self.rebuild(leaves)
        return model(*args, **kwargs)

    def rebuild(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments around ``leaves``."""
        arguments = self.tree.unflatten(leaves)
        if self.signature is None:
            keywords = arguments.pop("**", {})
            return tuple(arguments.values()), keywords
        bound = inspect.BoundArguments(self.signature, arguments)
        return bound.args, bound.kwargs


def unwrapped(model: Any) -> Any:
    """The model inside of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch.nn.Module):
            inner = getattr(model, "_orig_mod", None)
            if inner is None:
                return model
            model = inner
        else:
            inner = getattr(model, "_torchdynamo_orig_callable", None)
            if inner is None:
                return model
            model = inner


def _signature(model: Callable[..., Any]) -> inspect.Signature | None:
    target = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def bind(model: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] | None) -> Arguments:
    """Match arguments with the model's parameters.

    Raises:
        InputError: They do not fit the signature.
    """
    if not isinstance(args, tuple | list):
        args = (args,)
    if not isinstance(kwargs, Mapping | None):
        raise InputError(
            f"kwargs is a {type(kwargs).__name__}; it is a dict by parameter name",
            hint='write kwargs={"mask": mask}',
        )
    kwargs = dict(kwargs or {})
    signature = _signature(model)
    if signature is None:
        arguments: dict[str, Any] = {f"input_{i}": x for i, x in enumerate(args)}
        if kwargs:
            arguments["**"] = kwargs
    else:
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            name = getattr(model, "__name__", type(model).__name__)
            raise InputError(
                f"the arguments do not fit {name}{signature}: {error}",
                hint="give every input in args=(...) or kwargs={...}",
            ) from error
    leaves, tree = flatten(arguments, is_leaf)
    names = [_leaf_name(path, signature) for path in tree.paths()]
    return Arguments(leaves, tree, _unique(names), signature)


def _leaf_name(path: Sequence[Any], signature: inspect.Signature | None) -> str:
    parts = [str(p) for p in path]
    if signature is not None and len(parts) > 1:
        kind = signature.parameters[parts[0]].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            parts = parts[1:]
    return ".".join(parts)


def _unique(names: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    result = []
    for name in names:
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        result.append(unique)
    return result


def clone(x: Any) -> Any:
    """A copy that the model may write to."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x.copy())
    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    return x


def resize(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """``x`` with another size along an axis: values are repeated in turn, or left off.

    Repeated fractions shrink a little, for eager sorts equal numbers in any order; whole numbers
    may be ids or masks and stay. What is in order stays so: offsets, lengths, masks of padding.
    """
    before = x.shape[axis]
    if before == 0:
        shape = list(x.shape)
        shape[axis] = size
        return x.new_zeros(shape)
    places = torch.arange(size, device=x.device)
    if size > before and is_ordered(x, axis):
        return _stretched(x, axis, size)
    resized = x.index_select(axis, places % before)
    if size <= before or not x.is_floating_point():
        return resized
    shrunk = (0.999 ** (places // before)).to(x.dtype)
    factors = shrunk.view([-1 if a == axis else 1 for a in range(x.dim())])
    return torch.where(resized == resized.round(), resized, resized * factors)


def is_ordered(x: torch.Tensor, axis: int) -> bool:
    """Whether values rise, or fall, along an axis, in all rows."""
    if x.is_complex() or x.shape[axis] < 2:
        return False
    low, high = x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 1, x.shape[axis] - 1)
    rises, falls = bool((low <= high).all()), bool((low >= high).all())
    return rises != falls


def _stretched(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """``x`` with more values along an axis: fractions between its own, whole numbers repeated."""
    before = x.shape[axis]
    if not x.is_floating_point():
        return x.index_select(axis, torch.arange(size, device=x.device) * before // size)
    places = torch.linspace(0, before - 1, size, dtype=torch.float64, device=x.device)
    left = places.long().clamp(max=before - 2)
    share = (places - left).to(x.dtype).view([-1 if a == axis else 1 for a in range(x.dim())])
    low, high = x.index_select(axis, left), x.index_select(axis, left + 1)
    finite = low.isfinite() & high.isfinite()
    return torch.where(finite, low + (high - low) * share, low)


def world_leaves(
    leaves: Sequence[Any], symbols: Sequence[Symbol], sizes: Mapping[str, int]
) -> list[Any]:
    """Copies of the example's leaves in which each symbol has the given size."""
    copies = [clone(x) for x in leaves]
    for symbol in symbols:
        for leaf, axis in symbol.places:
            size = sizes.get(symbol.name, symbol.size)
            if copies[leaf].shape[axis] != size:
                copies[leaf] = resize(copies[leaf], axis, size)
        for leaf in {leaf for leaf, _ in symbol.places}:
            if [a for i, a in symbol.places if i == leaf] == [
                copies[leaf].dim() - n for n in (2, 1)
            ]:
                copies[leaf] = _regular(copies[leaf], leaves[leaf].shape[-1])
    return copies


def _regular(x: torch.Tensor, before: int) -> torch.Tensor:
    """Square matrices whose blocks beside the diagonal are small: repeated as they are they are singular.

    Positive definite ones stay that.
    """
    if x.shape[-1] <= before or not x.is_floating_point() or bool((x == x.round()).all()):
        return x
    block = torch.arange(x.shape[-1], device=x.device) // before
    return torch.where(block[:, None] == block, x, x / 64)


def modules_of(model: Any) -> dict[str, torch.nn.Module]:
    """The modules that a callable runs, by the prefix of their parameters' names."""
    if isinstance(model, torch.nn.Module):
        return {"": model}
    if isinstance(model, functools.partial):
        found = modules_of(model.func)
        for i, x in enumerate([*model.args, *model.keywords.values()]):
            if isinstance(x, torch.nn.Module):
                found.setdefault(f"arg{i}", x)
        return found
    owner = getattr(model, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        return {"": owner}
    function = inspect.unwrap(model) if callable(model) else model
    if not isinstance(function, types.FunctionType):
        return {}
    found = {}
    names = inspect.getclosurevars(function)
    for name, x in {**names.globals, **names.nonlocals}.items():
        if isinstance(x, torch.nn.Module):
            found[name] = x
    return found


def named_tensors(modules: Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Parameters and buffers under their ``state_dict`` names."""
    named: dict[str, torch.Tensor] = {}
    for prefix, module in modules.items():
        start = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(remove_duplicate=False):
            named[start + name] = parameter
        for name, buffer in module.named_buffers(remove_duplicate=False):
            named[start + name] = buffer
    return named


def module_paths(modules: Mapping[str, torch.nn.Module]) -> dict[int, str]:
    """The path of every module, by identity."""
    paths: dict[int, str] = {}
    for prefix, module in modules.items():
        for name, child in module.named_modules():
            path = ".".join(p for p in (prefix, name) if p)
            paths.setdefault(id(child), path)
    return paths

"""What a command is about: ``package.module:factory``, ``file.py:factory`` or ``model.onnx``."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetError

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

__all__ = ["Target", "add_target_options", "find_function", "find_target", "is_eager_name"]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A model and, where its factory gives them, arguments to call it with.

    Attributes:
        model: A module, a function over tensors, or the path of an ONNX file.
        args: Positional arguments; None where the factory gives none.
        kwargs: Keyword arguments.
    """

    model: Any
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


def is_eager_name(text: str) -> bool:
    """Whether a name is of Python code rather than of a file."""
    return ":" in text and not text.endswith(".onnx")


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Options that change an eager model after its factory made it."""
    group = parser.add_argument_group("eager model")
    group.add_argument("--eval", action="store_true", help="call model.eval() first")
    group.add_argument(
        "--weights", metavar="FILE", help="a state_dict to load: .safetensors, .pt or .pth"
    )
    group.add_argument(
        "--unpickle",
        action="store_true",
        help="let --weights run the code in a pickle: only for files that you trust",
    )


def find_function(text: str) -> Any:
    """The function that ``package.module:name`` or ``file.py:name`` stands for.

    Raises:
        TargetError: There is no such thing, or it cannot be called.
    """
    place, _, name = text.rpartition(":")
    found = _attribute(_import(place), name, place) if place else None
    if not callable(found):
        raise TargetError(
            f"{text!r} is no function", hint="name it package.module:function or file.py:function"
        )
    return found


def find_target(text: str, options: argparse.Namespace) -> Target:
    """The model that a command line names.

    After the colon stands a module, a class, a function over tensors, or a function without
    parameters that returns one of these, alone or as ``(model, args)`` or ``(model, args, kwargs)``.

    Raises:
        TargetError: There is no such thing, or it is no model.
    """
    if not is_eager_name(text):
        if not Path(text).exists():
            raise TargetError(
                f"there is no file {text}",
                hint="eager code is named package.module:factory or file.py:factory",
            )
        if text.endswith(".py"):
            raise TargetError(
                f"{text} is a file of Python: name what in it makes the model",
                hint=f"write {text}:factory",
            )
        return Target(text)
    place, _, name = text.rpartition(":")
    found = _attribute(_import(place), name, place)
    target = _called(found, text)
    if getattr(options, "weights", None):
        _load_weights(target.model, options.weights, unpickle=options.unpickle)
    if getattr(options, "eval", False):
        target.model.eval()
    return target


def _import(place: str) -> ModuleType:
    if place.endswith(".py") or os.sep in place:
        return _import_file(Path(place))
    sys.path.insert(0, os.getcwd())  # as ``python -m`` does
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and place.split(".")[0] == error.name.split(".")[0]:
            raise TargetError(
                f"there is no module {error.name!r}",
                hint=f"run from the folder that holds it, or name its file: {place}.py:factory",
            ) from error
        raise
    finally:
        sys.path.remove(os.getcwd())


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise TargetError(
                f"{place} has no {name!r}", hint=f"did you mean {near[0]!r}?" if near else None
            )
        found = getattr(found, part)
    return found


def _called(found: Any, text: str) -> Target:
    """What a factory makes; a model that is named directly as it is."""
    import torch

    if not isinstance(found, torch.nn.Module) and _takes_nothing(found):
        found = found()
    target = Target(found)
    if isinstance(found, tuple) and 1 < len(found) <= 3 and callable(found[0]):
        args = found[1] if isinstance(found[1], tuple | list) else (found[1],)
        target = Target(found[0], tuple(args), dict(found[2]) if len(found) == 3 else {})
    if not callable(target.model):
        raise TargetError(
            f"{text} gives a {type(target.model).__name__}, which is no model",
            hint="name an nn.Module, a function over tensors, or a function that returns one, "
            "alone or as (model, args)",
        )
    return target


def _takes_nothing(found: Any) -> bool:
    """Whether it can be called without arguments: a factory, or a class of models."""
    if not callable(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # functions in C have no signature
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    only_variadic = bool(parameters) and all(p.kind in variadic for p in parameters)
    required = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    return not required and (inspect.isclass(found) or not only_variadic)


def _load_weights(model: Any, path: str, *, unpickle: bool) -> None:
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TargetError("--weights needs an nn.Module, and the model is a function")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=not unpickle)
        model.load_state_dict(state.get("state_dict", state))
    except ModuleNotFoundError:
        raise
    except Exception as error:
        hint = None
        if "weights_only" in str(error) or "Unsupported global" in str(error):
            hint = "if you trust the file, let it run its code with --unpickle"
        first = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        if not Path(path).is_file():
            first, hint = "there is no such file", None
        raise TargetError(f"cannot load weights from {path}: {first}", hint=hint) from error

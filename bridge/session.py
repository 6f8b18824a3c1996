"""A model on ONNX Runtime, taking and returning what eager code takes and returns."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from bridge.errors import FeedError, RunError
from bridge.files import load_model, proto_without
from exporters.tracing.pytree import Tree, flatten, from_description

if TYPE_CHECKING:
    from bridge.program import Program

__all__ = ["Session", "Signature", "load"]


class Signature:
    """How a model's flat inputs and outputs nest in eager code.

    Attributes:
        inputs: The structure of the arguments: a dict by parameter name.
        input_leaves: Positions among the leaves that are graph inputs.
        outputs: The structure of the result.
        output_leaves: Positions among the result's leaves that are graph outputs.
        constants: What stands at the other positions of the result.
    """

    def __init__(
        self,
        inputs: Tree,
        input_leaves: Sequence[int],
        outputs: Tree,
        output_leaves: Sequence[int],
        constants: Mapping[int, Any],
    ) -> None:
        self.inputs = inputs
        self.input_leaves = list(input_leaves)
        self.outputs = outputs
        self.output_leaves = list(output_leaves)
        self.constants = dict(constants)

    @classmethod
    def from_metadata(cls, text: str) -> Signature:
        """The signature that an exported model carries."""
        data = json.loads(text)
        return cls(
            from_description(data["inputs"]),
            data["input_leaves"],
            from_description(data["outputs"]),
            data["output_leaves"],
            {int(k): v for k, v in data["constants"].items()},
        )

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters, in order."""
        return [str(k) for k in self.inputs.keys]

    def restore(self, values: Sequence[Any]) -> Any:
        """The result around the graph's outputs."""
        leaves = dict(self.constants)
        leaves.update(zip(self.output_leaves, values, strict=True))
        return self.outputs.unflatten([leaves[i] for i in sorted(leaves)])


def is_array(x: Any) -> bool:
    """Whether ``x`` is a leaf of inputs: an array, a tensor, a number."""
    return hasattr(x, "__array__") or isinstance(x, bool | int | float)


class Session:
    """Runs a model; call it with the eager arguments, or :meth:`run` with a dict of arrays.

    Args:
        model: A program, a model, its bytes, or the path of a file.
        providers: Execution providers in order of preference.
        options: ONNX Runtime session options.
    """

    def __init__(
        self,
        model: Program | ir.Model | bytes | str | os.PathLike[str],
        *,
        providers: str | Sequence[str] = "cpu",
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        self.providers = _provider_names(providers)
        options = options or onnxruntime.SessionOptions()
        held: list[Any] = []
        source: Any = model
        if not isinstance(model, bytes | str | os.PathLike):
            graph_model = model if isinstance(model, ir.Model) else model.model
            source = _serialise(graph_model, options, held)
        try:
            self.runtime = onnxruntime.InferenceSession(
                source if isinstance(source, bytes) else os.fspath(source),
                options,
                providers=self.providers,
            )
        except Exception as error:
            raise RunError(f"ONNX Runtime refused the model: {error}") from error
        self._held = held
        self.input_names = [i.name for i in self.runtime.get_inputs()]
        self.output_names = [o.name for o in self.runtime.get_outputs()]
        self._input_types = {i.name: i.type for i in self.runtime.get_inputs()}
        text = self.runtime.get_modelmeta().custom_metadata_map.get("bridge.signature")
        self.signature = None if text is None else Signature.from_metadata(text)
        if hasattr(model, "signature"):
            self.signature = model.signature

    def run(self, feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Run on arrays by input name.

        Raises:
            FeedError: An input is missing, unknown, or of another dtype.
            RunError: ONNX Runtime failed.
        """
        arrays = {name: self._array(name, x) for name, x in feed.items()}
        missing = [n for n in self.input_names if n not in arrays]
        unknown = [n for n in arrays if n not in self.input_names]
        if missing or unknown:
            told = [f"missing {', '.join(missing)}"] * bool(missing)
            told += [f"unknown {', '.join(unknown)}"] * bool(unknown)
            raise FeedError(f"{'; '.join(told)}; the model's inputs are {', '.join(self.input_names)}")
        try:
            results = self.runtime.run(self.output_names, arrays)
        except Exception as error:
            raise RunError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.output_names, results, strict=True))

    def _array(self, name: str, x: Any) -> np.ndarray[Any, Any]:
        array = to_numpy(x)
        wanted = self._input_types.get(name)
        if wanted is not None and wanted.startswith("tensor("):
            element = ir.DataType[wanted[7:-1].upper()].numpy()
            if array.dtype != element and isinstance(x, int | float | bool):
                array = array.astype(element)
            if array.dtype != element:
                raise FeedError(f"input {name!r} is {array.dtype.name}, the model takes {element.name}")
        return array

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call with the eager arguments; returns the eager structure, of tensors if any came in."""
        leaves = self.flatten(args, kwargs)
        results = list(self.run(dict(zip(self.input_names, leaves, strict=True))).values())
        if any(type(x).__module__.startswith("torch") for x in leaves):
            results = [_to_torch(x) for x in results]
        if self.signature is None:
            return results[0] if len(results) == 1 else tuple(results)
        return self.signature.restore(results)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The graph's inputs among eager arguments.

        Raises:
            FeedError: The arguments do not have the exported structure.
        """
        signature = self.signature
        if signature is None:
            leaves = flatten([list(args), dict(kwargs)], is_array)[0]
            if len(leaves) != len(self.input_names):
                raise FeedError(f"{len(leaves)} inputs given, the model takes {', '.join(self.input_names)}")
            return leaves
        names = signature.parameters
        given = dict(zip(names, args, strict=False))
        if len(args) > len(names):
            raise FeedError(f"{len(args)} arguments given, the model takes {', '.join(names)}")
        doubled = [k for k in kwargs if k in given]
        if doubled:
            raise FeedError(f"{doubled[0]!r} is given twice, by position and by name")
        given.update(kwargs)
        nested: dict[str, Any] = {}
        for name, child in zip(names, signature.inputs.children, strict=True):
            if name in given:
                nested[name] = given.pop(name)
            elif child.leaf_count:
                raise FeedError(f"{name!r} is missing; the model takes {', '.join(names)}")
            else:
                nested[name] = child.original
        if given:
            raise FeedError(f"unknown {', '.join(given)}; the model takes {', '.join(names)}")
        leaves, tree = flatten(nested, is_array)
        expected = list(signature.inputs.paths())
        if len(leaves) != len(expected):
            raise FeedError(
                f"the arguments hold {len(leaves)} tensors and numbers, at the export there were "
                f"{len(expected)}: {', '.join('.'.join(map(str, p)) for p in expected)}"
            )
        return [leaves[i] for i in signature.input_leaves]


def load(
    path: str | os.PathLike[str] | ir.Model | bytes | Program,
    *,
    providers: str | Sequence[str] = "cpu",
    options: onnxruntime.SessionOptions | None = None,
) -> Session:
    """A session of a model file.

    Args:
        path: The ``.onnx`` file; a program or a model in memory will do too.
        providers: ``"cpu"``, ``"cuda,cpu"``, or ONNX Runtime's own names.
        options: ONNX Runtime session options.

    Raises:
        ModelFileError: There is no such file, or it is no model.
        RunError: ONNX Runtime refuses it.
    """
    if isinstance(path, str | os.PathLike):
        load_model(path)  # says clearly what is wrong with a file
    return Session(path, providers=providers, options=options)


def _provider_names(providers: str | Sequence[str]) -> list[str]:
    names = providers.split(",") if isinstance(providers, str) else list(providers)
    known = {p.removesuffix("ExecutionProvider").lower(): p for p in onnxruntime.get_all_providers()}
    return [known.get(n.strip().lower(), n.strip()) for n in names]


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """An array that shares memory with ``x`` where it can."""
    if isinstance(x, np.ndarray):
        return x
    if type(x).__module__.startswith("torch") or hasattr(x, "detach"):
        from onnx_ir.tensor_adapters import TorchTensor

        return TorchTensor(x.detach().contiguous()).numpy()
    return np.asarray(x)


def _to_torch(x: np.ndarray[Any, Any]) -> Any:
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _serialise(model: ir.Model, options: onnxruntime.SessionOptions, held: list[Any]) -> bytes:
    """The model as bytes, its large weights handed over in memory instead of copied."""
    weights = {
        name: v.const_value
        for name, v in model.graph.initializers.items()
        if v.const_value is not None and v.const_value.nbytes >= 1024 and v.const_value.dtype.numpy().kind in "fiub"
    }
    for name, tensor in weights.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy()))
        held.append(value)
        options.add_external_initializers([name], [value])
    return proto_without(model, list(weights))

"""Model files: written whole or not at all, without copying the weights."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from bridge.errors import ModelFileError
from bridge.large_files import load_apart
from bridge.untrusted import check_bytes, check_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "load_model",
    "model_bytes",
    "parse_model",
    "proto_without",
    "require_folder",
    "save_model",
]

_PROTOBUF_LIMIT = 2**31 - 1  # bytes in one message
_LARGE_FILE = 64 * 2**20  # bytes from which weights are read one by one
_STREAMED = 1024  # bytes from which an initializer is written straight from its memory

# Protobuf wire format: tag = field number << 3 | 2 for a length-delimited field.
_MODEL_GRAPH = bytes([7 << 3 | 2])
_GRAPH_INITIALIZER = bytes([5 << 3 | 2])
_TENSOR_RAW_DATA = bytes([9 << 3 | 2])


def save_model(
    model: ir.Model, path: str | os.PathLike[str], *, external_data: bool | None = None
) -> None:
    """Write a model to ``path``, replacing what is there only when all is written.

    Args:
        model: The model; its weights are written from where they lie in memory.
        path: The ``.onnx`` file.
        external_data: Whether weights go to a file of their own beside it; None does so when one
            file would be over protobuf's 2 GB.

    Raises:
        ModelFileError: The folder does not exist or cannot be written to.
    """
    target = _target(path)
    size = sum(
        v.const_value.nbytes
        for v in model.graph.initializers.values()
        if v.const_value is not None
    )
    if external_data is None:
        external_data = size > _PROTOBUF_LIMIT - 64 * 2**20  # nodes need some room too
    try:
        if external_data:
            _save_external(model, target)
        else:
            before = _data_file_of(target)
            with _replacing(target) as file:
                _write(model, file)
            if before is not None:
                before.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"cannot write {target}: {error.strerror or error}",
            hint="give a path in an existing folder that you may write to",
        ) from error


def require_folder(path: str | os.PathLike[str]) -> None:
    """See that a file may be put at ``path``, before hours of work go into it.

    Raises:
        ModelFileError: Its folder does not exist or cannot be written to.
    """
    target = _target(path)
    reason = None
    if target.is_dir():
        reason = "it is a folder"
    elif not target.parent.is_dir():
        reason = f"{target.parent} is no folder"
    elif not os.access(target.parent, os.W_OK):
        reason = f"{target.parent} may not be written to"
    if reason is not None:
        raise ModelFileError(
            f"cannot write {target}: {reason}",
            hint="give a path in an existing folder that you may write to",
        )


def _target(path: Any) -> Path:
    if isinstance(path, str | os.PathLike) and Path(path).name:
        return Path(path)
    raise ModelFileError(
        f"cannot write {path!r}: it is no name of a file",
        hint='give a path such as "model.onnx"',
    )


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``target`` when the block ends well, and vanishes otherwise."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _without(model: ir.Model, values: Sequence[ir.Value]) -> Iterator[None]:
    """The model while it lacks some initializers."""
    initializers = model.graph.initializers
    order = list(initializers.values())
    for value in values:
        del initializers[value.name]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for value in order:
            initializers.pop(value.name, None)  # type: ignore[arg-type]
        for value in order:
            initializers.add(value)


def proto_without(
    model: ir.Model,
    names: Sequence[str],
    dropped: Sequence[str] = (),
    *,
    location: str = "in memory",
) -> bytes:
    """The serialised model in which the named initializers say that their data is elsewhere.

    Args:
        model: The model.
        names: Initializers whose data is elsewhere.
        dropped: Initializers to leave out.
        location: Where it is: the name of a file that has room for each of them at its start, if
            it is not handed over in memory.
    """
    values = [model.graph.initializers[n] for n in names]
    with _without(model, [*values, *(model.graph.initializers[n] for n in dropped)]):
        proto = _to_proto(model)
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        stub = proto.graph.initializer.add(
            name=value.name,
            data_type=int(tensor.dtype),
            dims=list(tensor.shape.numpy()),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        stub.external_data.add(key="location", value=location)
        stub.external_data.add(key="length", value=str(tensor.nbytes))
    data: bytes = proto.SerializeToString()
    return data


def model_bytes(model: ir.Model) -> bytes:
    """The serialised model with all its weights in it.

    Raises:
        ModelFileError: It is not sound.
    """
    data: bytes = _to_proto(model).SerializeToString()
    return data


def _to_proto(model: ir.Model) -> Any:
    """The model as ``onnx`` has it.

    Raises:
        ModelFileError: It is not sound: a name is missing, a type contradicts itself.
    """
    try:
        return ir.to_proto(_detached(model, stays=False))
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelFileError(f"the model cannot be serialised: {cause}") from error


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _write(model: ir.Model, file: BinaryIO) -> None:
    """Serialise with large initializers streamed behind the rest of the graph message."""
    streamed = [
        v
        for v in model.graph.initializers.values()
        if v.const_value is not None
        and v.const_value.nbytes >= _STREAMED
        and v.const_value.dtype != ir.DataType.STRING
    ]
    with _without(model, streamed):
        proto = _to_proto(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    headers = []
    total = len(graph)
    for value in streamed:
        tensor = value.const_value
        assert tensor is not None
        header = onnx.TensorProto(
            name=value.name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy())
        ).SerializeToString() + _TENSOR_RAW_DATA + _varint(tensor.nbytes)  # fmt: skip
        length = len(header) + tensor.nbytes
        prefix = _GRAPH_INITIALIZER + _varint(length)
        headers.append((prefix + header, tensor))
        total += len(prefix) + length
    file.write(proto.SerializeToString())
    file.write(_MODEL_GRAPH + _varint(total))
    file.write(graph)
    for header, tensor in headers:
        file.write(header)
        tensor.tofile(file)  # type: ignore[attr-defined]


def _save_external(model: ir.Model, target: Path) -> None:
    """Write the weights first, under a name that no existing model refers to, then the model."""
    before = _data_file_of(target)
    data = target.with_name(f"{target.name}.data")
    if data.exists():
        data = target.with_name(f"{target.name}.{secrets.token_hex(4)}.data")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        ir.save(model, temporary, format="protobuf", external_data=data.name)
        temporary.replace(target)
    except BaseException:
        data.unlink(missing_ok=True)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if before is not None and before != data:
        before.unlink(missing_ok=True)


def _data_file_of(target: Path) -> Path | None:
    """The data file that the model at ``target`` refers to, if it is one that we named."""
    beside = target.parent.glob(f"{glob.escape(target.name)}.*")
    if not target.exists() or not any(beside):
        return None
    try:
        model = onnx.load(target, load_external_data=False)
    except Exception:  # whatever is there is about to be replaced
        return None
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value.startswith(f"{target.name}."):
                return target.with_name(Path(entry.value).name)
    return None


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """The model in a file; weights stay in the file until they are read.

    Raises:
        ModelFileError: There is no such file, or it is not an ONNX model.
    """
    target = Path(path)
    check_path(target)
    try:
        large = target.stat().st_size >= _LARGE_FILE
        return _detached(load_apart(target) if large else ir.load(target))
    except OSError as error:
        raise ModelFileError(f"cannot read {target}: {error.strerror or error}") from error
    except Exception as error:
        raise ModelFileError(f"{target} cannot be read: {_root_cause(error)}") from error


def _detached(model: ir.Model, *, stays: bool = True) -> ir.Model:
    """The model with weights of its own.

    Part of a protobuf message keeps all of it in memory, and copies its bytes whenever it is read.
    What is in a file of its own is read, for a model that goes elsewhere goes without that file.

    Args:
        model: The model, which is changed.
        stays: Whether large weights of the main graph stay in their file until they are read.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = _own(value.const_value, stays=stays and graph is model.graph)
    owners: list[Any] = [model.graph, *model.functions.values()]
    for owner in owners:
        for node in owner.all_nodes():
            for name, given in node.attributes.items():
                if given.type == ir.AttributeType.TENSOR and not given.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, _own(given.as_tensor()))
    return model


def _own(tensor: Any, *, stays: bool = False) -> Any:
    if isinstance(tensor, ir.ExternalTensor):
        if stays and tensor.nbytes >= _STREAMED:
            return tensor
        return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
    message = isinstance(tensor, ir.serde.TensorProtoTensor)
    if not message or tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:  # packed
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def parse_model(data: bytes) -> ir.Model:
    """The model in bytes.

    Raises:
        ModelFileError: They are not an ONNX model, or have their data elsewhere.
    """
    check_bytes(data)
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        return _detached(ir.from_proto(proto))
    except Exception as error:
        raise ModelFileError(f"the model cannot be read: {_root_cause(error)}") from error


def _root_cause(error: BaseException) -> str:
    """What happened, where the error itself only says during what."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)

"""Model files with gigabytes of weights inside, read without a second copy of any weight."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from bridge.wire import BYTES, Reader

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_apart"]

_LARGE = 1 << 20  # bytes of a weight that is worth reading apart
# Fields of ModelProto, GraphProto and TensorProto.
_GRAPH, _INITIALIZER, _DATA_TYPE, _NAME, _RAW_DATA = 7, 5, 2, 8, 9


def load_apart(path: Path) -> ir.Model:
    """The model in a file; large weights of its graph go from the file into memory of their own.

    A protobuf message would be in memory twice while it is read: its bytes, and what they say.
    """
    with path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            places: dict[str, tuple[int, int]] = {}
            skeleton = _without_weights(Reader(data, path.name), places)
        model = ir.from_proto(onnx.ModelProto.FromString(skeleton))
        ir.external_data.set_base_dir(model.graph, path.parent)
        for name, (start, end) in places.items():
            value = model.graph.initializers[name]
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes != end - start:
                told = f"{name!r} has {end - start} bytes, and {tensor.nbytes} by its shape"
                raise ValueError(told)
            array = np.empty(tensor.shape.numpy(), tensor.dtype.numpy())
            file.seek(start)
            file.readinto(array.reshape(-1).view(np.uint8).data)
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=name)
    return model


def _without_weights(reader: Reader, places: dict[str, tuple[int, int]]) -> bytes:
    """The model's message without its large weights, of which it notes where they are."""

    def copied(start: int, end: int, change: Any) -> bytes:
        parts = []
        for number, wire, first, last in reader.fields(start, end):
            changed = change(number, first, last) if wire == BYTES else None
            content = bytes(reader.data[first:last]) if changed is None else changed
            length = _varint(len(content)) if wire == BYTES else b""
            parts.append(_varint(number << 3 | wire) + length + content)
        return b"".join(parts)

    def model_field(number: int, start: int, end: int) -> bytes | None:
        return copied(start, end, graph_field) if number == _GRAPH else None

    def graph_field(number: int, start: int, end: int) -> bytes | None:
        # Packed types stay: NumPy has none of less than a byte.
        if number != _INITIALIZER or end - start < _LARGE:
            return None
        fields = {n: (first, last) for n, _, first, last in reader.fields(start, end)}
        if not fields.keys() >= {_DATA_TYPE, _NAME, _RAW_DATA}:
            return None
        dtype = ir.DataType(reader.varint(*fields[_DATA_TYPE])[0])
        if fields[_RAW_DATA][1] - fields[_RAW_DATA][0] < _LARGE or dtype.bitwidth < 8:
            return None
        places[bytes(reader.data[slice(*fields[_NAME])]).decode()] = fields[_RAW_DATA]
        return copied(start, end, lambda n, *_: b"" if n == _RAW_DATA else None)

    return copied(0, len(reader.data), model_field)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

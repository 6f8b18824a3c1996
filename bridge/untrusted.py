"""Looking through a model file before anything else reads it.

A file is somebody else's bytes. This walks its protobuf messages in place, without allocating what
they claim to hold, and sees that lengths stay inside of the file, that graphs are not nested
beyond reason, that functions do not call each other without end, that tensors have the data that
their dims declare, and that external data lies in the model's own folder.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import stat
from pathlib import Path

from bridge.errors import ModelFileError
from bridge.function_calls import check_calls
from bridge.wire import BYTES, VARINT, Reader

__all__ = ["check_bytes", "check_path"]

_DEEPEST = 30  # graphs inside of graphs; protobuf's own parsers stop at 33
_HIGHEST_RANK = 255
_LARGEST = 2**62  # bytes of one tensor: beyond this, sizes overflow in C
_PROTOBUF_LIMIT = 2**31 - 1

# Field numbers of onnx.proto, and the kind of message that is there. What is not here is skipped.
_MODEL = {7: "graph", 20: "training", 25: "function"}
_INSIDE = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}  # fmt: skip
# Messages that may occur once: of two, protobuf merges the parts, which nobody could have checked.
_SINGLE = {"model": (7,), "attribute": (5, 6, 22), "sparse": (1, 2), "training": (1, 2)}

# Fields of a TensorProto.
_DIMS, _DATA_TYPE, _STRINGS, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 6, 8, 9, 13, 14
_TYPED = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}  # bytes that an entry takes; 0 for varints
# Of each TensorProto.DataType, the field that its typed data is in, and entries for an element.
_ENTRIES = {
    **dict.fromkeys((2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 24, 27, 28), (5, 1.0)),
    1: (4, 1.0), 7: (7, 1.0), 11: (10, 1.0), 12: (11, 1.0), 13: (11, 1.0), 14: (4, 2.0),
    15: (10, 2.0), 21: (5, 0.5), 22: (5, 0.5), 23: (5, 0.5), 25: (5, 0.25), 26: (5, 0.25),
}  # fmt: skip
_LAST_BYTES = bytes(range(128, 256))  # what is left without these: one byte of each varint
# Bits of an element by TensorProto.DataType.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64,
    15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_STRING = 8
_SIX_BITS = (27, 28)  # stored packed, or each in a byte of its own


@dataclasses.dataclass(slots=True)
class _Tensor:
    """What a TensorProto says of itself."""

    name: str = "?"
    dims: list[int] = dataclasses.field(default_factory=list)
    data_type: int = 0
    raw: int | None = None
    typed: dict[int, int] = dataclasses.field(default_factory=dict)  # entries of each typed field
    strings: int = 0
    external: dict[str, str] = dataclasses.field(default_factory=dict)
    is_external: bool = False


class _Scanner(Reader):
    """Walks the messages of one file.

    Args:
        data: The file's bytes.
        name: What to call the file.
        folders: Where external data may lie; nowhere if empty.

    Attributes:
        sizes: The size of each file with external data, by its location.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str, folders: tuple[Path, ...]) -> None:
        super().__init__(data, name)
        self._folders = folders
        self.sizes: dict[str, int] = {}

    def run(self) -> None:
        """See that the file is a model that is safe to load.

        Raises:
            ModelFileError: It is not.
        """
        found = list(self._messages("model", _MODEL, 0, len(self.data)))
        graphs = [(start, end) for kind, start, end in found if kind == "graph"]
        self.require(len(graphs) == 1, "it has no graph")
        pending = [(kind, start, end, 1) for kind, start, end in found]
        while pending:
            kind, start, end, depth = pending.pop()
            self.require(depth <= _DEEPEST, f"its graphs are nested more than {_DEEPEST} deep")
            for inside, inner, stop in self._messages(kind, _INSIDE[kind], start, end):
                if inside == "tensor":
                    self._tensor(inner, stop)
                else:
                    pending.append((inside, inner, stop, depth + (inside == "graph")))
        functions = [(start, end) for kind, start, end in found if kind == "function"]
        if functions:
            check_calls(self, graphs[0], functions)

    def _messages(
        self, kind: str, wanted: dict[int, str], start: int, end: int
    ) -> list[tuple[str, int, int]]:
        """The messages inside of one that have to be looked into."""
        found = []
        seen: set[int] = set()
        for number, wire, inner, stop in self.fields(start, end):
            inside = wanted.get(number)
            if inside is None:
                continue
            self.require(wire == BYTES, f"a {inside} is no message")
            self.require(number not in seen, f"a {kind} has two of what it should have one of")
            if number in _SINGLE.get(kind, ()):
                seen.add(number)
            found.append((inside, inner, stop))
        return found

    def _tensor(self, start: int, end: int) -> None:
        tensor = _Tensor()
        for number, wire, inner, stop in self.fields(start, end):
            if number == _DIMS:
                while inner < stop and len(tensor.dims) <= _HIGHEST_RANK:
                    value, inner = self.varint(inner, stop)
                    tensor.dims.append(value if value < 2**63 else value - 2**64)
            elif number == _DATA_TYPE and wire == VARINT:
                tensor.data_type = self.varint(inner, stop)[0]
            elif number == _LOCATION and wire == VARINT:
                tensor.is_external = self.varint(inner, stop)[0] == 1
            elif number == _NAME and wire == BYTES:
                tensor.name = self.text(inner, stop)
            elif number == _RAW and wire == BYTES:
                self.require(tensor.raw is None, "a tensor has its data twice")
                tensor.raw = stop - inner
            elif number == _STRINGS:
                tensor.strings += 1
            elif number in _TYPED:
                count = self._entries(number, inner, stop) if wire == BYTES else 1
                tensor.typed[number] = tensor.typed.get(number, 0) + count
            elif number == _EXTERNAL and wire == BYTES:
                self._entry(tensor, inner, stop)
        self._check(tensor)

    def _entries(self, number: int, start: int, end: int) -> int:
        """How many numbers a packed field holds."""
        size = _TYPED[number]
        if size:
            return (end - start) // size
        return len(bytes(self.data[start:end]).translate(None, _LAST_BYTES))

    def _entry(self, tensor: _Tensor, start: int, end: int) -> None:
        pair = {1: "", 2: ""}
        for number, wire, inner, stop in self.fields(start, end):
            if number in pair and wire == BYTES:
                pair[number] = bytes(self.data[inner:stop]).decode("utf-8", "replace")
        tensor.external[pair[1]] = pair[2]

    def _check(self, tensor: _Tensor) -> None:
        """See that a tensor has the data that it declares."""
        name = f"tensor {tensor.name!r}"
        self.require(len(tensor.dims) <= _HIGHEST_RANK, f"{name} has too many dims")
        self.require(all(d >= 0 for d in tensor.dims), f"{name} has a negative size")
        count = math.prod(tensor.dims)
        self.require(count < _LARGEST, f"{name} claims {count} elements")
        if tensor.data_type in _SIX_BITS:
            bits = 6 if tensor.is_external or tensor.raw != count else 8
        else:
            bits = _BITS.get(tensor.data_type, 0)
        known = bits or tensor.data_type == _STRING
        self.require(bool(known), f"{name} has the unknown element type {tensor.data_type}")
        size = (count * bits + 7) // 8
        if tensor.is_external:
            self._external(tensor, name, size)
        elif tensor.data_type == _STRING:
            told = f"{name} claims {count} strings and has {tensor.strings}"
            self.require(count == tensor.strings, told)
        elif tensor.raw is not None:
            told = f"{name} claims {size} bytes and has {tensor.raw}"
            self.require(size == tensor.raw, told)
        else:
            field, each = _ENTRIES[tensor.data_type]
            held = tensor.typed.get(field, 0)
            told = f"{name} claims {count} elements and has {held} entries for them"
            self.require(held == math.ceil(count * each), told)

    def _external(self, tensor: _Tensor, name: str, size: int) -> None:
        """See that external data is in the model's folder, and as much as is declared."""
        location = tensor.external.get("location", "")
        self.require(bool(self._folders), f"{name} has its data in another file, {location!r}")
        self.require(tensor.data_type != _STRING, f"{name} is of strings, and external")
        available = self.sizes.get(location)
        if available is None:
            available = self.sizes[location] = self._file_size(location, name)
        offset = self._number(tensor, "offset", name) or 0
        length = self._number(tensor, "length", name)
        told = f"{name} claims {size} bytes, and {length} in {location!r}"
        self.require(length is None or length == size, told)
        told = f"{name} ends at {offset + size} of {location!r}, which has {available} bytes"
        self.require(offset + size <= available, told)

    def _number(self, tensor: _Tensor, key: str, name: str) -> int | None:
        text = tensor.external.get(key)
        if text is None:
            return None
        digits = text.isascii() and text.isdigit() and len(text) < 20
        self.require(digits, f"the {key} of {name} is {text!r}")
        return int(text)

    def _file_size(self, location: str, name: str) -> int:
        """The size of a file with external data, if that may be read."""
        told = f"{name} has its data in {location!r}"
        self.require(location not in ("", ".") and "\0" not in location, told)
        parts = location.replace("\\", "/").split("/")
        absolute = os.path.isabs(location) or location.startswith(("/", "\\")) or ":" in parts[0]
        self.require(not absolute, f"{told}, an absolute path")
        self.require(".." not in parts, f"{told}, outside of the model's folder")
        try:
            real = (self._folders[0] / location).resolve(strict=True)
            state = real.stat()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelFileError(
                f"{self.name}: {told}, which cannot be read: {error}",
                hint="keep the data file beside the model",
            ) from error
        inside = any(real.is_relative_to(folder) for folder in self._folders)
        self.require(inside, f"{told}, which leads to {real}, outside of the model's folder")
        self.require(stat.S_ISREG(state.st_mode), f"{told}, which is no regular file")
        return state.st_size


def check_path(path: str | os.PathLike[str]) -> list[Path]:
    """See that a file holds a model that is safe to load.

    Returns:
        The files with its external data.

    Raises:
        ModelFileError: There is no such file, it is no model, it is broken, or it reaches for what
            is not its own.
    """
    target = Path(path)
    try:
        state = target.stat()  # before it is opened: opening a pipe waits for a writer
        if stat.S_ISDIR(state.st_mode):
            raise ModelFileError(f"{target} is a folder", hint="give the .onnx file in it")
        if not stat.S_ISREG(state.st_mode):
            raise ModelFileError(f"{target} is no regular file")
        if state.st_size == 0:
            raise ModelFileError(f"{target} is empty")
        if state.st_size > _PROTOBUF_LIMIT:
            raise ModelFileError(
                f"{target} has {state.st_size} bytes; protobuf messages end at 2 GB",
                hint="save it with external_data=True",
            )
        # Beside the file, or, where the file is a link, beside what it leads to: download caches
        # keep models and their data as links into one folder.
        folders = (target.parent.resolve(), target.resolve().parent)
        with (
            target.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            scanner = _Scanner(data, str(target), folders)
            scanner.run()
            return [target.parent / location for location in sorted(scanner.sizes)]
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no file {target}") from error
    except (OSError, ValueError, RuntimeError) as error:
        told = getattr(error, "strerror", None) or error
        raise ModelFileError(f"cannot read {target}: {told}") from error


def check_bytes(data: bytes, name: str = "the model") -> None:
    """See that bytes are a model that is safe to load, all of whose data is in them.

    Raises:
        ModelFileError: They are not.
    """
    if not data:
        raise ModelFileError(f"{name} is empty")
    _Scanner(data, name, ()).run()

"""Protobuf messages as they lie in a file: read in place, every length checked, nothing copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.errors import ModelFileError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

__all__ = ["BYTES", "VARINT", "Reader"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types; groups (3, 4) ONNX has none
_LONGEST_TEXT = 1000  # bytes that are looked at


class Reader:
    """Reads the messages of one file.

    Attributes:
        data: The file's bytes.
        name: What to call the file.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name

    def require(self, condition: bool, told: str) -> None:  # noqa: FBT001
        """Go on only if the file is as it should be.

        Raises:
            ModelFileError: It is not.
        """
        if not condition:
            raise ModelFileError(
                f"{self.name} is not a sound ONNX model: {told}",
                hint="get the file anew from where it came from",
            )

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """A number, and the position behind it."""
        value = shift = 0
        while True:
            self.require(position < end and shift < 70, "it ends in the middle of a number")
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), position
            shift += 7

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and place of the value of each field of a message."""
        position = start
        data = self.data
        while position < end:
            tag = data[position]
            if tag < 0x80:
                position += 1
            else:
                tag, position = self.varint(position, end)
            wire, number = tag & 7, tag >> 3
            if wire == BYTES:
                self.require(position < end, "it is cut off")
                length = data[position]
                if length < 0x80:
                    position += 1
                else:
                    length, position = self.varint(position, end)
                self.require(length <= end - position, "it is cut off, or a length in it is wrong")
                yield number, wire, position, position + length
                position += length
            elif wire == VARINT:
                before = position
                _, position = self.varint(position, end)
                yield number, wire, before, position
            else:
                self.require(wire in (FIXED32, FIXED64), "it is no protobuf message")
                size = 4 if wire == FIXED32 else 8
                self.require(size <= end - position, "it is cut off")
                yield number, wire, position, position + size
                position += size
            self.require(number > 0, "it is no protobuf message")

    def text(self, start: int, end: int) -> str:
        """A string, cut where it is too long to be a name."""
        return bytes(self.data[start : min(end, start + _LONGEST_TEXT)]).decode("utf-8", "replace")

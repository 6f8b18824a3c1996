"""Graphs as ONNX Runtime has rewritten them, kept so that the next session need not do it again.

An entry is a folder whose name is the digest of everything that the graph depends on: the model's
content, ONNX Runtime's build, the providers with their options, the session's settings and the
processor. It is written beside its place and moved there when it is whole, so that processes may
share a cache without locks, and a process that dies leaves nothing that another one would read.
What is read is compared with the checksums that were noted when it was written. A cache is as
trustworthy as those who may write to its folder, which is made for its owner alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnxruntime

from bridge.errors import FeedError, ModelFileError
from bridge.files import proto_without
from bridge.untrusted import check_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.runtime import Settings

__all__ = ["CacheWarning", "ModelCache", "cache_folder"]

_MODEL = "model.onnx"
WEIGHTS = "weights.bin"
_MANIFEST = "manifest.json"
_ABANDONED = 3600.0  # seconds after which an entry that nobody finished is somebody's remains
_FORMAT = 1  # of the entries
_PART = 2**22  # bytes that are read at a time


class CacheWarning(UserWarning):
    """A session runs, but its graph could not be kept or was damaged."""


def cache_folder(wanted: bool | str | os.PathLike[str] | None) -> Path | None:  # noqa: FBT001
    """Where graphs are kept; None if they are not.

    Args:
        wanted: A folder; True for the user's cache folder; None for what ``BRIDGE_CACHE`` says.

    Raises:
        FeedError: It is none of these.
    """
    if wanted is None:
        wanted = os.environ.get("BRIDGE_CACHE") or False
    if wanted is False or wanted is None:
        return None
    if wanted is True:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "bridge"
    if not isinstance(wanted, str | os.PathLike):
        raise FeedError(f"cache is {wanted!r}; it is a folder, True or False")
    return Path(wanted)


class ModelCache:
    """Rewritten graphs in a folder.

    Args:
        folder: The folder; made when something is first kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, model: ir.Model | bytes | str | os.PathLike[str], settings: Settings) -> str:
        """The name of the entry of a model under some settings."""
        digest = hashlib.sha256(json.dumps(_surroundings(settings), sort_keys=True).encode())
        _add_content(digest, model)
        return digest.hexdigest()

    def find(self, key: str) -> Path | None:
        """The graph that is kept under a key; None if there is none, or it is damaged."""
        entry = self.folder / key
        try:
            noted = json.loads((entry / _MANIFEST).read_bytes())["files"]
            wrong = [name for name, told in noted.items() if _checksum(entry / name) != told]
        except (FileNotFoundError, NotADirectoryError):
            if not entry.exists():
                return None
            wrong = ["a file is missing"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = [str(error)]
        if not wrong:
            return entry / _MODEL
        self.drop(key, ", ".join(wrong))
        return None

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that is of no use."""
        _warn(f"the cached graph {self.folder / key} is damaged and made anew: {reason}")
        _remove(self.folder / key)

    @contextlib.contextmanager
    def place(self, key: str) -> Iterator[Path | None]:
        """A path for a graph to be written to in the block; None where nothing can be kept.

        It is found under ``key`` once the block has ended well.
        """
        place = self.folder / f".{key[:16]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            place.mkdir()
        except OSError as error:
            _warn(f"graphs cannot be kept in {self.folder}: {error.strerror or error}")
            yield None
            return
        try:
            yield place / _MODEL
            if (place / _MODEL).exists():
                self._finish(key, place)
        finally:
            _remove(place)

    def _finish(self, key: str, place: Path) -> None:
        """Note what was written, and move it to where it is found."""
        try:
            check_path(place / _MODEL)  # runtimes do not always notice that a disk is full
            files = {p.name: _checksum(p) for p in place.iterdir()}
            for name in files:
                _sync(place / name)
            (place / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "files": files}))
            _sync(place / _MANIFEST)
            place.rename(self.folder / key)
        except (OSError, ModelFileError) as error:
            if not (self.folder / key).exists():  # else another process was faster
                self.refuse(str(getattr(error, "strerror", None) or error))

    def _sweep(self) -> None:
        """Remove what processes that died have left."""
        for remains in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - remains.stat().st_mtime > _ABANDONED:
                    _remove(remains)

    def refuse(self, reason: str) -> None:
        """Say that a graph cannot be kept."""
        _warn(f"the graph cannot be kept in {self.folder}: {reason}")


def _warn(text: str) -> None:
    warnings.warn(text, CacheWarning, stacklevel=7)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(path: Path) -> int:
    """Of what we wrote ourselves: against damage, not against malice."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(_PART):
            found = zlib.crc32(part, found)
    return found


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _surroundings(settings: Settings) -> dict[str, Any]:
    """What a rewritten graph depends on, the model aside."""
    return {
        "format": _FORMAT,
        "runtime": [onnxruntime.__version__, onnxruntime.get_build_info()],
        "providers": [[p.name, sorted(p.options.items())] for p in settings.contract.providers],
        "optimization": settings.optimization,
        "config": sorted(settings.config.items()),
        "disabled": sorted(settings.disabled_optimizers),
        "processor": _processor(),
    }


@functools.cache
def _processor() -> list[str]:
    """Kernels are chosen by what the processor can do, and some graphs are laid out for them."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features = line
                break
    return [platform.system(), platform.machine(), features]


def _add_content(digest: Any, model: ir.Model | bytes | str | os.PathLike[str]) -> None:
    if isinstance(model, bytes):
        digest.update(model)
    elif isinstance(model, ir.Model):
        weights = {
            n: v.const_value
            for n, v in model.graph.initializers.items()
            if v.const_value is not None and v.const_value.dtype != ir.DataType.STRING
        }
        digest.update(proto_without(model, list(weights)))
        for weight in weights.values():
            digest.update(weight.tobytes())
    else:
        for path in (Path(model), *check_path(model)):
            digest.update(bytes.fromhex(_digest(path)))

"""Named deployments: where and how models run, written down in ``bridge.toml``.

::

    [deployments.edge]
    providers = "openvino,cpu"
    threads = 2
    optimization = "all"
    options.openvino = { device_type = "CPU" }
    require = { openvino = 0.9, copies_in_loops = 0 }
    cache = "~/.cache/bridge"

The file is found in the current folder or above it, or where ``BRIDGE_CONFIG`` points.
``BRIDGE_DEPLOYMENT`` names the deployment for sessions that do not name one.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from bridge.errors import ProviderError

__all__ = ["Deployment", "deployment", "find_config"]

_NUMBER = (int, float)
_TEXT_OR_NUMBER = (str, bool, int, float)
# Each key with what it may be, and for a table what may be in it.
_KEYS: dict[str, tuple[tuple[type, ...], tuple[type, ...], str]] = {
    "providers": ((str, list), (), 'text or a list of names: "cuda,cpu"'),
    "threads": ((int,), (), "a number: 4"),
    "optimization": ((str,), (), 'a level: "all"'),
    "config": ((dict,), _TEXT_OR_NUMBER, 'a table: { "session.set_denormal_as_zero" = "1" }'),
    "options": ((dict,), (dict,), "a table for each provider: options.cuda = { device_id = 1 }"),
    "require": ((dict,), _NUMBER, "a table of shares: { cuda = 0.99, copies_in_loops = 0 }"),
    "cuda_graphs": ((bool, dict), (list,), "true, or a table of sizes: { batch = [1, 8] }"),
    "cache": ((bool, str), (), 'true or a folder: "~/.cache/bridge"'),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment:
    """How sessions are made in one place.

    Attributes:
        name: Its name in the file.
        providers: The request for providers.
        options: Options by provider.
        session: Further arguments of :class:`~bridge.session.Session`.
        require: What :meth:`Session.require_placement` must find.
    """

    name: str
    providers: Any
    options: dict[str, dict[str, Any]]
    session: dict[str, Any]
    require: dict[str, Any]


def find_config(start: Path | None = None) -> Path | None:
    """The ``bridge.toml`` that counts here, None if there is none."""
    named = os.environ.get("BRIDGE_CONFIG")
    if named:
        return Path(named)
    here = (start or Path.cwd()).resolve()
    return next(
        (f / "bridge.toml" for f in (here, *here.parents) if (f / "bridge.toml").exists()), None
    )


def deployment(name: str | None, path: Path | None = None) -> Deployment | None:
    """A deployment by name, or the one that the environment names; None if neither names one.

    Raises:
        ProviderError: There is no such deployment, or the file cannot be read.
    """
    name = name or os.environ.get("BRIDGE_DEPLOYMENT")
    if not name:
        return None
    path = path or find_config()
    if path is None:
        raise ProviderError(
            f"deployment {name!r} is asked for, and there is no bridge.toml here",
            hint="write one, or point BRIDGE_CONFIG at it",
        )
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("deployments", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProviderError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ProviderError(
            f"deployments in {path} is no table", hint=f"begin one with [deployments.{name}]"
        )
    if name not in found:
        raise ProviderError(
            f"{path} has no deployment {name!r}; it has {', '.join(found) or 'none'}"
        )
    if not isinstance(found[name], dict):
        raise ProviderError(
            f"deployment {name!r} in {path} is no table",
            hint=f"begin it with [deployments.{name}]",
        )
    data = dict(found[name])
    for key in data:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise ProviderError(
                f"deployment {name!r} in {path} has an unknown key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(_KEYS)}",
            )
        _require_kind(key, data[key], f"deployment {name!r} in {path}")
    if isinstance(data.get("cache"), str):
        data["cache"] = path.parent / Path(data["cache"]).expanduser()
    return Deployment(
        name=name,
        providers=data.pop("providers", "cpu"),
        options=data.pop("options", {}),
        require=data.pop("require", {}),
        session=data,
    )


def _require_kind(key: str, value: Any, place: str) -> None:
    """See that a value is of a type that its key takes.

    Raises:
        ProviderError: It is not.
    """
    kinds, inner, told = _KEYS[key]
    fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    odd = (
        [k for k, v in value.items() if not isinstance(v, inner)]
        if fits and isinstance(value, dict)
        else []
    )
    if not fits or odd:
        wrong = value if not odd else f"{odd[0]} = {value[odd[0]]!r}"
        raise ProviderError(f"{place}: {key} is {wrong!r}", hint=f"{key} is {told}")

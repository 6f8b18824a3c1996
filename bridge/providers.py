"""Execution providers as a contract: what was asked for is what runs, or an error says why not.

A request is a string such as ``"cuda,cpu"``, ``"cuda:1"``, ``"cuda>=0.95,cpu"`` (a promised share
of the nodes) or ``"tensorrt(trt_fp16_enable=1),cuda"``, a list of names and ``(name, options)``
pairs, or a policy:
``"fastest"`` measures every installed provider, ``"cuda-or-fail"`` is the same as ``"cuda"``.
Where ``cpu`` is not in the list, a computation that would run on the CPU is an error; shapes may
always be computed there. CUDA computes float32 in float32: ``"cuda(use_tf32=1)"`` is faster and less
exact.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from bridge.errors import ProviderError

__all__ = ["CPU", "CUDA_PROVIDERS", "Contract", "Provider", "available", "is_plugin", "resolve"]

_SUFFIX = "ExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")  # they share memory
_ALIASES = {"trt": "tensorrt", "directml": "dml", "nvidia": "cuda", "tensorrtrtx": "nvtensorrtrtx"}
# Providers that need not be named in a request for everything to run where it was asked for.
_DEVICE_OPTION = {"openvino": "device_type"}
# float32 is computed in float32, as eager code does by default; ONNX Runtime would round products
# to the 10 bits of TensorFloat-32.
_DEFAULTS: dict[str, dict[str, Any]] = {"CUDAExecutionProvider": {"use_tf32": 0}}
_ITEM = re.compile(
    r"^(?P<name>[\w-]+)(?::(?P<device>[\w.]+))?(?:\((?P<options>.*)\))?"
    r"(?:>=(?P<share>[\d.]+))?$",
    re.DOTALL,
)
_NOT_ASKED_FOR = (
    "AzureExecutionProvider",
    CPU,
)  # remote, and the yardstick: "fastest" adds it itself


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider and its options.

    Attributes:
        name: ONNX Runtime's name: ``CUDAExecutionProvider``.
        options: Its options, as ONNX Runtime documents them.
        share: Which share of the nodes it must take, those that only compute shapes not counted.
    """

    name: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    share: float = 0.0

    @property
    def label(self) -> str:
        """The short name: ``cuda``."""
        return self.name.removesuffix(_SUFFIX).lower()

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options.items())
        text = f"{self.label}({options})" if options else self.label
        return f"{text}>={self.share:g}" if self.share else text


@dataclasses.dataclass(frozen=True, slots=True)
class Contract:
    """Which providers a session must have.

    Attributes:
        providers: In order of preference. Empty for the policy ``"fastest"``.
        cpu_allowed: Whether the CPU may take what no other provider has a kernel for.
        enforced: Whether it matters which nodes a provider takes; of small parts of a model,
            providers take what they like.
    """

    providers: tuple[Provider, ...]
    cpu_allowed: bool
    enforced: bool = True

    @property
    def fastest(self) -> bool:
        """Whether the choice is to be measured."""
        return not self.providers

    def __str__(self) -> str:
        return ",".join(map(str, self.providers)) or "fastest"

    def require_available(self) -> None:
        """See that the installed runtime has every provider.

        Raises:
            ProviderError: It lacks one; the message says why, the hint how to get it.
        """
        installed = available()
        for provider in self.providers:
            if provider.name not in installed:
                from bridge.doctor import why_absent

                reason, remedy = why_absent(provider.name)
                told = ", ".join(Provider(n).label for n in installed if "Azure" not in n)
                raise ProviderError(
                    f"provider {provider.label!r} is not there: {reason} (there are: {told})",
                    hint=remedy,
                )

    def require_active(self, active: Sequence[str]) -> None:
        """See that a session got every provider, none having failed to start.

        Raises:
            ProviderError: ONNX Runtime went on without one.
        """
        for provider in self.providers:
            if provider.name not in active:
                from bridge.doctor import why_inactive

                reason, remedy = why_inactive(provider.name, options=provider.options)
                raise ProviderError(
                    f"provider {provider.label!r} did not start: {reason}", hint=remedy
                )

    def with_option(self, names: Sequence[str], key: str, value: str) -> Contract:
        """The contract with one more option for some providers."""
        providers = tuple(
            dataclasses.replace(p, options={**p.options, key: value}) if p.name in names else p
            for p in self.providers
        )
        return dataclasses.replace(self, providers=providers)


def available() -> list[str]:
    """The providers that the installed runtime has, plugins included."""
    names = list(onnxruntime.get_available_providers())
    if hasattr(onnxruntime, "get_ep_devices"):
        names += [d.ep_name for d in onnxruntime.get_ep_devices()]
    return list(dict.fromkeys(names))


def is_plugin(name: str) -> bool:
    """Whether a provider came with ``onnxruntime.register_execution_provider_library``."""
    return name not in onnxruntime.get_available_providers() and name in available()


def candidates() -> list[Provider]:
    """What the policy ``"fastest"`` chooses from; the CPU is last."""
    return [*(Provider(n) for n in available() if n not in _NOT_ASKED_FOR), Provider(CPU)]


def resolve(
    request: str | Sequence[Any] | Contract,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Contract:
    """The contract that a request stands for.

    ``BRIDGE_PROVIDERS`` in the environment takes the place of any request that is not a contract
    already.

    Args:
        request: A string, a list of names and ``(name, options)`` pairs, or a contract.
        options: Further options by provider.

    Raises:
        ProviderError: No provider has that name, or the request cannot be read.
    """
    if isinstance(request, Contract):
        return request
    request = os.environ.get("BRIDGE_PROVIDERS") or request
    if not isinstance(request, str | Sequence):
        raise ProviderError(
            f"providers is a {type(request).__name__}; it is text or a list of names",
            hint='write providers="cuda,cpu"',
        )
    items = _split(request) if isinstance(request, str) else list(request)
    if not items:
        raise ProviderError(
            "no provider was asked for", hint='ask for one, for instance providers="cpu"'
        )
    if items == ["fastest"]:
        return Contract((), cpu_allowed=True)
    strict = [i for i in items if isinstance(i, str) and i.endswith("-or-fail")]
    further = {_full_name(k): v for k, v in (options or {}).items()}
    providers = [_provider(item, further) for item in items]
    cpu_allowed = not strict and any(p.name == CPU for p in providers)
    if not any(p.name == CPU for p in providers):
        providers.append(Provider(CPU))
    return Contract(tuple(providers), cpu_allowed)


def _split(text: str) -> list[str]:
    """The items of a list, commas inside parentheses aside."""
    parts = re.split(r",(?![^()]*\))", text)
    return [p.strip() for p in parts if p.strip()]


def _provider(item: Any, options: Mapping[str, Mapping[str, Any]]) -> Provider:
    given: dict[str, Any] = {}
    if isinstance(item, tuple):
        if len(item) != 2 or not isinstance(item[1], Mapping):
            raise ProviderError(
                f"{item!r} is no provider with its options",
                hint='write ("cuda", {"device_id": 1})',
            )
        item, given = item[0], dict(item[1])
    if isinstance(item, Provider):
        return item
    matched = _ITEM.match(str(item).removesuffix("-or-fail"))
    if matched is None:
        raise ProviderError(
            f"{item!r} is no provider",
            hint='write "cuda", "cuda:1", "cuda>=0.95" or "cuda(device_id=1, use_tf32=0)"',
        )
    name = _full_name(matched["name"])
    if matched["device"]:
        option = _DEVICE_OPTION.get(Provider(name).label, "device_id")
        if option == "device_id" and not matched["device"].isdigit():
            raise ProviderError(
                f"{matched['device']!r} of {item!r} is no device",
                hint=f'write its number: "{matched["name"]}:0"',
            )
        given[option] = matched["device"]
    for pair in filter(None, re.split(r"[,;]", matched["options"] or "")):
        key, separator, value = pair.partition("=")
        if not separator:
            raise ProviderError(f"option {pair.strip()!r} of {item!r} has no value")
        given[key.strip()] = value.strip()
    given = {**_DEFAULTS.get(name, {}), **options.get(name, {}), **given}
    try:
        share = float(matched["share"] or 0)
    except ValueError:
        share = float("inf")
    if share > 1:
        raise ProviderError(
            f"{matched['share']} of {item!r} is no share of the nodes",
            hint='write a number up to 1: "cuda>=0.95"',
        )
    return Provider(name, {k: _option(v) for k, v in given.items()}, share)


def _option(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _full_name(name: str) -> str:
    """ONNX Runtime's name for ``cuda``.

    Raises:
        ProviderError: There is none.
    """
    known = {
        n.removesuffix(_SUFFIX).lower(): n
        for n in (*onnxruntime.get_all_providers(), *available(), "NvTensorRTRTXExecutionProvider")
    }
    label = name.removesuffix(_SUFFIX).lower()
    label = _ALIASES.get(label, label)
    if label in known:
        return known[label]
    near = difflib.get_close_matches(label, [*known, *_ALIASES], 1)
    raise ProviderError(
        f"no provider is called {name!r}; there are {', '.join(sorted(known))}",
        hint=f'did you mean "{near[0]}"?' if near else None,
    )

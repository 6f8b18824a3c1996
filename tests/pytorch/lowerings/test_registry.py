"""What holds of every registered lowering of the tensor operators."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch

import tests.pytorch.lowerings as suite
from exporters.pytorch import frontend, registry  # noqa: F401  (registration)
from exporters.pytorch.registry import Decomposition, Lowering
from tests.pytorch.lowerings import cases
from tests.pytorch.opinfo import OpCase, op_infos

MODULES = [
    "activations",
    "arithmetic",
    "assignment",
    "aten",
    "bessel",
    "comparison",
    "complex_numbers",
    "conversion",
    "creation",
    "cumulative",
    "elementwise",
    "fft",
    "indexing",
    "joining",
    "masking",
    "orthogonal",
    "reductions",
    "sampling",
    "scattering",
    "searching",
    "shaping",
    "slicing",
    "sorting",
    "special",
    "splitting",
]

# Lowerings whose operator has no samples, by what tests them.
NAMED = {
    "test_aten": """
        alias lift_fresh lift_fresh_copy detach copy _to_copy normal_functional _reshape_alias index
        rrelu_with_noise_functional _unsafe_index _unsafe_index_put _unsafe_view elu _prelu_kernel
        _softmax _log_softmax _unique native_dropout slice_copy select_copy new_zeros new_empty new_full
        new_ones feature_dropout
    """,
    "test_assignment": "__setitem__ setitem copy_ fill_ zero_",
    "test_complex_numbers": "cdouble",
    "test_fft": "_fft_r2c _fft_c2c _fft_c2r",
    "test_conversion": "cpu cuda data type_as double detach type bfloat16",
    "test_creation": "asarray as_tensor tensor",
    "test_sampling": """
        rand random_ randperm dropout1d feature_alpha_dropout dropout alpha_dropout feature_dropout
    """,
    "test_splitting": "unsafe_split_with_sizes split_copy",
    "test_special": "psi gammaln expit erf exp2 expm1 log1p gammainc gammaincc softmax",
    "test_arithmetic": "divide",
    "test_elementwise": "fix negative absolute arccos arccosh arcsin arcsinh arctan arctanh",
    "test_searching": "_unique2 unique_dim",
}


# One function for overloads that differ in what stands second.
OVERLOADS_IN_ONE = {
    *(f"torch.{name}" for name in ("var", "std", "var_mean", "std_mean", "sort", "argsort"))
}


def own_entries() -> list[tuple[Any, Any]]:
    """Keys with the functions that these modules registered for them."""
    found = []
    for key, entries in registry.registered().items():
        for entry in entries:
            if isinstance(entry, Lowering):
                function = entry.emit
            elif isinstance(entry, Decomposition):
                function = entry.body
            else:
                continue
            if inspect.unwrap(function).__module__.rpartition(".")[2] in MODULES:
                found.append((key, entry))
    return found


def parameters_of(entry: Any) -> list[inspect.Parameter]:
    if isinstance(entry, Lowering):
        return list(inspect.signature(entry.emit).parameters.values())[1:]
    return list(inspect.signature(entry.body).parameters.values())


def signatures_of(key: Any) -> list[list[str]]:
    """Torch's own parameter names, one list per overload."""
    name = registry.aten_name(key)
    if name is None and not isinstance(key, torch._ops.OpOverloadPacket):
        return [list(inspect.signature(inspect.unwrap(key)).parameters)]
    names = [name, f"special_{name}", f"linalg_{name}"] if name else []
    for candidate in names:
        schemas = torch._C._jit_get_schemas_for_operator(f"aten::{candidate}")
        if schemas:
            return [
                ["input" if a.name == "self" else a.name for a in s.arguments] for s in schemas
            ]
    return []


def label(key: Any) -> str:
    return str(torch.overrides.resolve_name(key) or getattr(key, "__name__", key))


# Where torch's schema is not what Python may write.
OTHER_NAMES = {
    "torch.Tensor.where": "the method's tensor is the schema's second",
    "torch.Tensor.polygamma": "the method's tensor is the schema's second",
    "torch.functional.einsum": "torch takes everything by position",
    "torch.nonzero": "`as_tuple` exists in Python alone",
    "torch.functional.unique_consecutive": "torch dispatches it by keyword",
}


ENTRIES = [(k, e) for k, e in own_entries() if signatures_of(k) and label(k) not in OTHER_NAMES]


@pytest.mark.parametrize(("key", "entry"), ENTRIES, ids=[label(k) for k, _ in ENTRIES])
def test_parameters_are_torchs(key: Any, entry: Any) -> None:
    signatures = signatures_of(key)
    given = parameters_of(entry)
    ordered = [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    ordered = ["input" if n == "self" else n for n in ordered if n != "inplace"]
    keywords = {p.name for p in given if p.kind is p.KEYWORD_ONLY}
    everything = {name for s in signatures for name in s}
    assert keywords <= everything
    assert set(ordered[1:]) <= everything  # the first has another name in some overloads
    orders = [s[: len(ordered)][1:] == ordered[1:] for s in signatures]
    assert any(orders) or label(key) in OVERLOADS_IN_ONE


def covered_names() -> set[str]:
    """Names of the operators that some case in this folder runs."""
    names: set[str] = set()
    for module in pkgutil.iter_modules(suite.__path__):
        if not module.name.startswith("test_") or module.name == "test_registry":
            continue
        found = importlib.import_module(f"{suite.__name__}.{module.name}")
        for value in vars(found).values():
            for case in value if isinstance(value, list | tuple) else ():
                if isinstance(case, OpCase):
                    names |= names_of(case.name)
    return names


def names_of(case: str) -> set[str]:
    info = op_infos()[case]
    aliases = {a.name for a in info.aliases}
    spelled = {info.name, info.aten_name, *aliases}
    for function in (info.op, info.method_variant, info.inplace_variant, info.operator_variant):
        spelled.add(getattr(function, "__name__", ""))
    short = {n.rpartition(".")[2] for n in spelled if n}
    return short | {n.removeprefix("special_").removeprefix("linalg_") for n in short}


def test_every_lowering_is_tested() -> None:
    known = covered_names() | {n for names in NAMED.values() for n in names.split()}
    missing = set()
    for key, _ in own_entries():
        name = registry.aten_name(key) or getattr(key, "__name__", str(key))
        if isinstance(key, torch._ops.OpOverloadPacket) and str(key).startswith("prims"):
            continue  # reached through torch's reference implementations
        plain = name.strip("_").removeprefix("special_").removesuffix(".get")
        if not {name, plain, f"__{plain}__"} & known:
            missing.add(f"{label(key)} ({name})")
    assert not missing, sorted(missing)


def test_dtype_rows_are_not_empty() -> None:
    assert cases.supported(OpCase("add"), cases.ALL) == list(cases.ALL)

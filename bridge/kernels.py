"""Which kernels an ONNX Runtime has: asked of the one that is installed.

``python -m bridge.kernels kernels.json`` adds the installed version and its providers to the table
that :mod:`bridge.targets` reads. It is run once for each version that is deployed, with that version
installed; it needs nothing else but NumPy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["installed_kernels"]

_NO_END = 2**31 - 1  # ONNX Runtime's "still valid"
_SHORT = "ExecutionProvider"


def installed_kernels() -> dict[str, Any]:
    """The kernels of the installed runtime, as plain data.

    Returns:
        ``version``; ``opset``, the newest that it knows; and ``kernels`` by provider: for each
        ``domain:op`` a list of first version, last version (0 where it is still valid) and the
        types of each type parameter.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, dict[str, list[Any]]] = {}
    for kernel in state.get_all_opkernel_def():
        provider = kernel.provider.removesuffix(_SHORT).lower()
        first, last = kernel.version_range
        types = {
            name: sorted(t.removeprefix("tensor(").removesuffix(")") for t in allowed)
            for name, allowed in kernel.type_constraints.items()
        }
        row = [first, 0 if last == _NO_END else last, types]
        rows = found.setdefault(provider, {}).setdefault(f"{kernel.domain}:{kernel.op_name}", [])
        if row not in rows:
            rows.append(row)
    schemas = [s for s in state.get_all_operator_schema() if s.domain == ""]
    return {
        "version": onnxruntime.__version__,
        "opset": max(s.since_version for s in schemas),
        "kernels": found,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(installed_kernels()))

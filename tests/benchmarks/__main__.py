"""``python -m tests.benchmarks [name ...]`` runs the benchmarks; ``--list`` names them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def names() -> list[str]:
    """The benchmark modules beside this file."""
    here = [str(Path(__file__).parent)]
    return sorted(
        m.name
        for m in pkgutil.iter_modules(here)
        if not m.name.startswith("_") and m.name != "timing"
    )


def main() -> None:
    """Run the named benchmarks, all of them unless named."""
    wanted = sys.argv[1:]
    if wanted == ["--list"]:
        print("\n".join(names()))
        return
    for name in wanted or names():
        print(f"# {name}", flush=True)
        importlib.import_module(f"tests.benchmarks.{name}").main()


if __name__ == "__main__":
    main()

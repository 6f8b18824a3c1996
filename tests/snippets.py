"""Runs the snippets of the docs; ``python -m tests.snippets [name ...]`` writes down what they print.

A snippet prints to the ``.txt`` file beside it, and ``snippets/errors/SomeError.py`` raises that
error, whose message goes there. The pages include both.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import sys
import tempfile
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "snippets"
# What another run, or another machine, may print otherwise.
_VARIES = re.compile(r"(?<![\w.])[-+]?(\d[\d.]*(e[-+]?\d+)?|inf)(?![a-wyz_\d])")
_TIMES = re.compile(r"^\w+ # s(, \w+ # s)*$", re.MULTILINE)


def snippets() -> list[Path]:
    """Every snippet that is a program; those named ``test_*`` are pytest's."""
    return sorted(p for p in FOLDER.rglob("*.py") if not p.name.startswith("test_"))


def output(path: Path) -> str:
    """What a snippet prints, or the message of the error that it is named for."""
    printed = io.StringIO()
    before, threads = Path.cwd(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                runpy.run_path(str(path), run_name="__main__")
        except Exception as error:
            if path.parent.name != "errors" or type(error).__name__ != path.stem:
                raise
            printed.write(f"{path.stem}: {error}\n")
        else:
            if path.parent.name == "errors":
                raise AssertionError(f"{path.name} raised nothing")
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)
    return printed.getvalue()


def unvarying(text: str) -> str:
    """A text without its numbers and without the phases that took time."""
    return _TIMES.sub("times", re.sub(" +#", " #", _VARIES.sub("#", text)))


def main() -> None:
    """Write down what the named snippets print, all of them unless named."""
    wanted = set(sys.argv[1:])
    for path in snippets():
        if wanted and path.stem not in wanted:
            continue
        text = output(path)
        recorded = path.with_suffix(".txt")
        if text and not (recorded.exists() and unvarying(recorded.read_text()) == unvarying(text)):
            recorded.write_text(text)
            print(f"wrote {recorded.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""The docs say what is so: snippets run, pages build, every name, command and anchor exists."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import bridge
import exporters
import optim_passes
from bridge.cli import COMMANDS
from bridge.errors import BridgeError
from exporters.errors import ExportError
from optim_passes.errors import PassError
from tests.benchmarks import __main__ as benchmarks
from tests.snippets import FOLDER, ROOT, output, snippets, unvarying

DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md"))
README = ROOT / "README.md"
# Never raised themselves; their subclasses are.
ABSTRACT = {"BridgeError", "ExportError", "PassError"}


def errors() -> list[type[Exception]]:
    """Every error class of the three packages."""
    for package in (bridge, exporters, optim_passes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found: list[type[Exception]] = []
    waiting: list[type[Exception]] = [BridgeError, ExportError, PassError]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found.append(cls)
            waiting += cls.__subclasses__()
    return sorted((c for c in found if not c.__name__.startswith("_")), key=lambda c: c.__name__)


def slugs(markdown: str) -> set[str]:
    """Anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ +(.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


def code_of(markdown: str) -> str:
    """What a page shows as code, in blocks and in lines."""
    found = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", markdown, re.DOTALL)
    return "\n".join(block or line for block, line in found)


@pytest.mark.parametrize("path", snippets(), ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_snippets_print_what_the_docs_say(path):
    printed = output(path)
    recorded = path.with_suffix(".txt")
    expected = recorded.read_text() if recorded.exists() else ""
    assert unvarying(printed) == unvarying(expected), "python -m tests.snippets writes it anew"


def test_the_snippet_that_is_a_test_suite_passes():
    path = FOLDER / "test_ci.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_every_snippet_is_shown_somewhere():
    text = "\n".join(p.read_text() for p in (*PAGES, README))
    for path in FOLDER.rglob("*.py"):
        assert path.relative_to(FOLDER).as_posix() in text, path


def test_marks_of_included_snippets_are_whole():
    for path in (*PAGES, README):
        marks = re.findall(r"^.*8 ?< ?--.*$", path.read_text(), re.MULTILINE)
        assert all(re.fullmatch(r'--8<-- "[\w./]+(:\w+)*"', m) for m in marks), path.name


def test_every_error_class_has_its_anchor_and_names_it():
    anchors = slugs((DOCS / "errors.md").read_text())
    for cls in errors():
        anchor = str(cls("what happened")).rpartition("docs/errors#")[2]
        assert anchor == cls.__name__.lower()
        assert anchor in anchors, f"docs/errors.md has no section {cls.__name__}"


def test_every_error_class_that_is_raised_has_an_example():
    examples = {p.stem for p in (FOLDER / "errors").glob("*.py")}
    public = {c.__name__ for c in errors()} & set(bridge.__all__) - ABSTRACT
    assert public <= examples


def test_pages_that_messages_point_to_exist():
    pattern = re.compile(r"see (docs/[\w/-]+)")
    for package in ("bridge", "exporters", "optim_passes"):
        for path in (ROOT / package).rglob("*.py"):
            for page in pattern.findall(path.read_text()):
                assert (ROOT / f"{page}.md").exists(), f"{path.name} points to {page}"


def test_commands_and_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, README):
        code = code_of(page.read_text())
        for command in re.findall(r"^(?:\$ )?bridge ([a-z]+)\b", code, re.MULTILINE):
            assert command in COMMANDS, f"{page.name}: bridge {command}"
        for target in re.findall(r"^(?:\$ )?make ([a-z-]+)\b", code, re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_every_command_is_in_the_reference():
    text = (DOCS / "reference" / "cli.md").read_text()
    assert not [c for c in COMMANDS if f"`bridge {c} " not in text and f"`bridge {c}`" not in text]


def test_every_benchmark_and_its_results_are_in_the_index():
    text = (DOCS / "benchmarks.md").read_text()
    pages = {p.name for p in (DOCS / "benchmarks").glob("*.md")}
    assert not [n for n in benchmarks.names() if f"`{n}`" not in text]
    assert not [p for p in pages if f"(benchmarks/{p})" not in text]


def test_every_public_name_is_in_the_reference():
    text = "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: bridge\.(\w+)$", text, re.MULTILINE))
    errors_page = slugs((DOCS / "errors.md").read_text())
    missing = {n for n in bridge.__all__ if n not in shown and n.lower() not in errors_page}
    assert not missing


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", text))
    assert listed == {p.relative_to(DOCS).as_posix() for p in PAGES}


def test_the_readme_shows_what_runs():
    text = README.read_text()
    code = (FOLDER / "readme.py").read_text().strip()
    assert code in text
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    wanted = unvarying((FOLDER / "readme.txt").read_text().strip())
    assert wanted in [unvarying(b.strip()) for b in blocks]


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "errors" / "index.html").read_text()
    assert not [p for p in tmp_path.rglob("*.html") if "--8" in p.read_text()]  # an include
    for cls in errors():
        assert f'id="{cls.__name__.lower()}"' in page

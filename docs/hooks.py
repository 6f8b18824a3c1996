"""Docstrings use Sphinx roles, which the site shows as plain code."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """``:class:`~bridge.Session``` becomes ``Session``."""
    html = re.sub(r":(?:func|class|meth|mod|data|attr|exc):(?=<code>)", "", html)
    return re.sub(r"<code>~[\w.]*?(\w+)</code>", r"<code>\1</code>", html)

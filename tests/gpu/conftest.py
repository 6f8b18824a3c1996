"""What GPU tests find is said as it is found: a machine is lent for a short while."""

from __future__ import annotations

import time

import pytest


@pytest.fixture
def say(request, capfd):
    """Print a line at once, with the test's name."""
    started = time.perf_counter()

    def told(text):
        with capfd.disabled():
            seconds = time.perf_counter() - started
            print(f"\n[{seconds:6.1f} s] {request.node.name}: {text}", flush=True)

    return told

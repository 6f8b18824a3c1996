"""The public names of ``bridge``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bridge


def test_every_public_name_can_be_imported():
    assert set(bridge.__all__) == set(bridge._HOMES)
    for name in bridge.__all__:
        assert getattr(bridge, name).__name__.removeprefix("bridge.") == name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bridge.nothing  # noqa: B018


@pytest.mark.e2e
def test_running_a_model_needs_no_torch(tmp_path):
    """A deployment has onnxruntime and numpy."""
    from tests.bridge.graphs import SCALE, graph_bytes

    path = tmp_path / "scale.onnx"
    path.write_bytes(graph_bytes(SCALE))
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np, bridge; "
        f"s = bridge.load({str(path)!r}); "
        "y = s.run({'x': np.ones((2, 4), np.float32), 'w': np.ones(4, np.float32)})['y']; "
        "assert y.sum() == 8"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

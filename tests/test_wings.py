"""The wings: what goes over the wire, and the steps of a call, need no connection."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("wing", ["protocol", "calls"])
def test_a_wing_without_connections_is_imported_where_there_is_no_socket(wing: str) -> None:
    modules = sorted(path.stem for path in (ROOT / "redis_bus" / wing).glob("*.py"))
    names = [f"redis_bus.{wing}.{name}" for name in modules if name != "__init__"]
    assert len(names) > 5
    code = (
        "import importlib, sys; sys.modules['socket'] = sys.modules['_socket'] = None; "
        f"[importlib.import_module(name) for name in {names!r}]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

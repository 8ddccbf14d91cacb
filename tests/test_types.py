"""What type checkers see of the package: every public name, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import redis_bus
from tests.support import ROOT

ERRORS = [
    name
    for name in redis_bus.__all__
    if isinstance(getattr(redis_bus, name), type)
    and issubclass(getattr(redis_bus, name), Exception)
]
# A name that is not typed is an `object`: it can be neither called, nor caught, nor an annotation.
USES = f"""
import redis_bus
from redis_bus import {", ".join(redis_bus.__all__)}

def annotated(
    bus: Bus,
    other: AsyncBus,
    result: AsyncResult,
    letter: DeadLetter,
    method: Method[..., int],
    hooks: Middleware,
) -> dict[str, str]:
    {
    "".join(
        f'''
    try:
        method()
    except {name} as error:
        print(error.args)
    try:
        method()
    except redis_bus.{name} as error:
        print(error.with_traceback(None))
'''
        for name in ERRORS
    )
}
    for one in as_completed([result], timeout=1.0):
        print(one.get())
    with with_headers(trace="1"):
        return headers()
"""


@pytest.fixture
def check(tmp_path: Path, request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """What a type checker says of code, which is the parameter with the checker's name."""
    checker, code = request.param
    (tmp_path / "uses.py").write_text(code, encoding="utf-8")
    paths = {"MYPYPATH": str(ROOT), "PATH": os.environ["PATH"]}
    if checker == "mypy":
        command = ["mypy", "--strict", "--python-executable", sys.executable, "uses.py"]
    else:
        config = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
        (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
        # It is pyright, with the Node that it runs on in its wheel.
        command = ["basedpyright", "--pythonpath", sys.executable]
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=paths, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "check", [("mypy", USES), ("pyright", USES)], indirect=True, ids=["mypy", "pyright"]
)
def test_every_public_name_has_a_type(check: subprocess.CompletedProcess[str]) -> None:
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize(
    "check",
    [
        (checker, code)
        for checker in ("mypy", "pyright")
        for code in (
            "from redis_bus import NoSuchName\n",
            "import redis_bus\nredis_bus.NoSuchName\n",
        )
    ],
    indirect=True,
)
def test_a_name_that_is_not_there_is_an_error(check: subprocess.CompletedProcess[str]) -> None:
    assert check.returncode == 1
    assert "NoSuchName" in check.stdout


def test_every_public_name_is_there() -> None:
    assert all(hasattr(redis_bus, name) for name in redis_bus.__all__)
    assert sorted(redis_bus.__all__, key=str) == sorted(set(redis_bus.__all__), key=str)

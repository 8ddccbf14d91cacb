"""The Pythons that are promised are those that are tried, and each is tried without a server."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from redis_bus.transport.servers import SERVERS
from tests.pythons import BRIEF, ROOT, VERSIONS, find_python, is_python, path_without_servers

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_ci_tries_the_pythons_that_the_package_names() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'python_requires=">={VERSIONS[0]}"' in setup
    first, last = (int(version.partition(".")[2]) for version in (VERSIONS[0], VERSIONS[-1]))
    assert f'Python :: 3.{{minor}}" for minor in range({first}, {last + 1})' in setup
    assert len(VERSIONS) == last + 1 - first
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^\S*python\S* -m tests\.pythons$", run, re.MULTILINE)
    assert all((ROOT / "tests" / f"{name}.py").exists() for name in BRIEF)


def test_an_interpreter_is_taken_only_if_it_is_of_the_version_that_is_asked_for(
    tmp_path: Path,
) -> None:
    assert is_python(sys.executable, HERE)
    assert not is_python(sys.executable, "3.9")
    assert not is_python(str(tmp_path / "python3"), HERE)
    liar = tmp_path / "python3.9"
    liar.symlink_to(sys.executable)
    assert find_python("3.9", {"PATH": str(tmp_path)}) is None
    named = {"PATH": str(tmp_path), "TEST_PYTHONS": sys.executable}
    assert find_python(HERE, named) == sys.executable


@pytest.mark.parametrize("server", SERVERS)
def test_a_path_without_servers_has_all_else(tmp_path: Path, server: str) -> None:
    tools, others = tmp_path / "tools", tmp_path / "others"
    for folder, names in ((tools, (server, "tool")), (others, ("another",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
            (folder / name).chmod(0o755)
    path = path_without_servers(tmp_path / "made", f"{tools}:{others}")
    assert shutil.which(server, path=path) is None
    assert shutil.which("tool", path=path) and shutil.which("another", path=path)

"""The scripts are found however the package was installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from redis_bus.protocol import folders
from tests.support import ROOT

PROGRAM = """
import pathlib, redis_bus
from redis_bus.protocol import scripts
print(pathlib.Path(redis_bus.__file__).resolve().parent)
print(*sorted(scripts.load()))
"""
NAMES = sorted(path.stem for path in (ROOT / "lua").glob("*.lua"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as a clone has it: building leaves files behind."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("redis_bus", "lua", "sample"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A new environment with our dependencies and without us."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    # A folder named in a .pth is searched, but its own .pth files (an editable redis_bus) are not.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    line = [str(part) for part in command]
    done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(python: Path, cwd: Path) -> tuple[Path, list[str]]:
    where, names = run(python, "-c", PROGRAM, cwd=cwd).splitlines()
    return Path(where), names.split()


def install(python: Path, *what: object, cwd: Path) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", *what, cwd=cwd)


def test_a_wheel_has_the_scripts(tree: Path, python: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, tree, cwd=tmp_path)
    install(python, next(tmp_path.glob("*.whl")), cwd=tmp_path)
    where, names = installed(python, tmp_path)
    assert where.is_relative_to(tmp_path / "venv")
    assert names == NAMES
    assert (where / "sample" / "rng.py").is_file()
    assert (where / "py.typed").is_file()


def test_a_wheel_made_from_the_sdist_has_the_scripts(
    tree: Path, python: Path, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "build", "--outdir", tmp_path, tree, cwd=tmp_path)
    assert next(tmp_path.glob("*.tar.gz"))
    install(python, next(tmp_path.glob("*.whl")), cwd=tmp_path)
    where, names = installed(python, tmp_path)
    assert where.is_relative_to(tmp_path / "venv")
    assert names == NAMES


def test_an_editable_install_has_the_scripts(tree: Path, python: Path, tmp_path: Path) -> None:
    install(python, "--editable", tree, cwd=tmp_path)
    where, names = installed(python, tmp_path)
    assert where == tree / "redis_bus"
    assert names == NAMES


def test_a_clone_that_is_not_installed_has_the_scripts_and_the_samples(tree: Path) -> None:
    """As where another copy is installed, and Python finds the clone's in the current folder."""
    program = PROGRAM + "from redis_bus.protocol import folders; print(folders.find('sample'))"
    # Without site no .pth is read, and so no editable install found.
    dependencies = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    shown = run(sys.executable, "-S", "-c", program, cwd=tree, env=dependencies)
    where, names, samples = shown.splitlines()
    assert Path(where) == tree / "redis_bus"
    assert names.split() == NAMES
    assert Path(samples) == tree / "sample"


def test_a_package_whose_scripts_are_nowhere_says_which_folder_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"redis_bus\.nothing"):
        folders.find("nothing")


def test_what_is_needed_at_run_time_is_three_packages_and_the_parser_of_one(tree: Path) -> None:
    import importlib.metadata

    needed = [r for r in importlib.metadata.requires("redis_bus") or [] if "extra ==" not in r]
    names = sorted(r.partition(">")[0] for r in needed)
    assert names == ["click", "hiredis", "msgpack", "redis[hiredis]"]


# -- the sdist --------------------------------------------------------------------------------

MADE = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def files_of(tree: Path) -> set[Path]:
    """Return the files of a clone, or of an sdist, but for what building and running make."""
    if (tree / ".git").exists():
        line = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
        return {Path(name) for name in run(*line, cwd=tree).splitlines() if (tree / name).is_file()}
    found = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    return {
        path
        for path in found
        if not any(Path(name).match(pattern) for name in path.parts for pattern in MADE)
    }


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the sdist of a clone."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in files_of(ROOT):
        place = folder / "clone" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, folder / "clone", cwd=folder)
    (folder / "unpacked").mkdir()
    run("tar", "xf", next(folder.glob("*.tar.gz")), cwd=folder / "unpacked")
    (tree,) = (folder / "unpacked").iterdir()
    return tree


def pytest_in(tree: Path, *arguments: str) -> str:
    return run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=tree)


def collected(tree: Path) -> list[str]:
    """Return the tests that pytest finds in a tree, by their names."""
    lines = pytest_in(tree, "--collect-only", "-q").splitlines()
    return [line for line in lines if line.startswith("tests/") and "::" in line]


def test_the_sdist_has_every_file_of_a_clone(unpacked: Path) -> None:
    assert files_of(ROOT) - files_of(unpacked) == set()


def test_all_tests_are_found_in_the_sdist_and_run_there(unpacked: Path) -> None:
    found = collected(unpacked)
    assert len(found) > 1000
    assert found == collected(ROOT)
    shown = pytest_in(unpacked, "-q", "tests/transport/test_password.py")
    where = "import redis_bus, tests; print(redis_bus.__file__, tests.__file__)"
    for path in run(sys.executable, "-c", where, cwd=unpacked).split():
        assert Path(path).is_relative_to(unpacked)
    assert " passed" in shown

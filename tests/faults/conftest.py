"""Fault tests mostly wait: those marked ``together`` run side by side, and are reported singly.

Threads start all that are selected, some at a time; then each test, at its turn, waits for its own
thread and has its outcome and its output. See `place`.

With pytest-xdist, one of its processes runs all of this folder, see tests/conftest.py. Without it
the threads work from the beginning, beside the tests of other folders, which come first.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import traceback
from typing import Any

import pytest

from tests.faults.place import Place, PlaceClosed, kinds
from tests.support import find_servers, in_faults

AT_A_TIME = 8
SECONDS = 180.0
# What a thread gets to end in once its place is closed.
CLOSING_SECONDS = 10.0


class Scenario:
    """One marked test with its thread's outcome."""

    def __init__(self, item: pytest.Function) -> None:
        self.item = item
        marker = item.get_closest_marker("together")
        assert marker is not None
        self.options = dict(marker.kwargs)
        self.seconds = float(self.options.pop("seconds", SECONDS))
        self.options.pop("over", None)
        self.started = threading.Event()
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.output: list[str] = []
        self.place: Place | None = None
        self.thread: int | None = None

    def run(self, ended: threading.Event) -> None:
        """Run the test; for a thread. Its outcome is kept, whatever it is."""
        self.thread = threading.get_ident()
        self.started.set()
        begun = time.monotonic()
        try:
            arguments: dict[str, Any] = dict(self.item.callspec.params)
            kind = arguments["place"]
            executable = find_servers()[kind.server]
            self.place = Place(executable, kind.face, kind.slots, kind.on_loop, **self.options)
            arguments["place"] = self.place
            if ended.is_set():  # while the place was made, which so nobody closed
                raise PlaceClosed
            self.item.obj(**arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            self.error = error
            self._tell_of_processes()
        finally:
            try:
                self.close()
            except BaseException as error:  # noqa: BLE001
                self.error = self.error or error
            if self.place is not None:
                self.output += [f"note: {text}" for text in self.place.notes]
            self.output.append(f"ran for {time.monotonic() - begun:.1f} s")
            self.done.set()

    def _tell_of_processes(self) -> None:
        if self.place is not None:
            # The place may be closed meanwhile, by the end of the test run.
            with contextlib.suppress(OSError):
                self.output.append(self.place.tell_of_processes())

    def close(self) -> None:
        """End what the test started, so that the test ends."""
        if self.place is not None:
            self.place.close()

    def result(self) -> None:
        """Wait for the thread, print what it has to say, raise what the test raised."""
        self.started.wait()
        if not self.done.wait(self.seconds):
            frame = sys._current_frames().get(self.thread or 0)
            stack = "".join(traceback.format_stack(frame)) if frame else ""
            self.close()
            self.done.wait(CLOSING_SECONDS)
            print("\n".join(self.output))  # noqa: T201 - captured by pytest, shown with the test
            pytest.fail(f"it still ran after {self.seconds:g} s:\n{stack}", pytrace=False)
        print("\n".join(self.output))  # noqa: T201
        if self.error is not None:
            raise self.error


class Together:
    """The scenarios of a test run, and the threads that run them."""

    def __init__(self) -> None:
        self.scenarios: dict[str, Scenario] = {}
        self._waiting: queue.SimpleQueue[Scenario] = queue.SimpleQueue()
        self._ended = threading.Event()

    def start(self, items: list[pytest.Item]) -> None:
        """Start all marked tests, once."""
        if self.scenarios:
            return
        for item in items:
            if isinstance(item, pytest.Function) and item.get_closest_marker("together"):
                self.scenarios[item.nodeid] = scenario = Scenario(item)
                self._waiting.put(scenario)
        for _ in range(min(AT_A_TIME, len(self.scenarios))):
            # Daemons: one that hangs does not keep pytest from its end.
            threading.Thread(target=self._work, name="fault test", daemon=True).start()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                scenario = self._waiting.get_nowait()
            except queue.Empty:
                return
            scenario.run(self._ended)

    def end(self) -> None:
        """Close the places of the tests that run still, where pytest ends before them."""
        self._ended.set()
        begun = [s for s in self.scenarios.values() if s.started.is_set()]
        for scenario in begun:
            if not scenario.done.is_set():
                scenario.close()
        end = time.monotonic() + CLOSING_SECONDS
        for scenario in begun:
            scenario.done.wait(max(0.0, end - time.monotonic()))


TOGETHER = pytest.StashKey[Together]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TOGETHER] = Together()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each marked test on every server that is here, and in the places it is to see too."""
    marker = metafunc.definition.get_closest_marker("together")
    if marker is not None:
        metafunc.parametrize("place", kinds(marker.kwargs.get("over")), ids=str)


def _order(item: pytest.Item) -> float:
    """The tests of this folder come last, and of those that wait the longest first."""
    marker = item.get_closest_marker("together")
    if marker is not None:
        return 1e9 - float(marker.kwargs.get("seconds", SECONDS))
    return 1.0 if in_faults(item.nodeid) else 0.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_order)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("together"):
            fixtures = set(item.fixturenames) - set(item.callspec.params)
            if fixtures - {"request"}:
                raise pytest.UsageError(
                    f"{item.nodeid}: a test marked `together` runs in a thread, "
                    f"and cannot have the fixtures {', '.join(sorted(fixtures))}"
                )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    # A process of pytest-xdist does not know yet which of all tests it is to run.
    is_one_of_many = (
        hasattr(session.config, "workerinput") or session.config.getoption("dist", "no") != "no"
    )
    if not session.config.option.collectonly and not is_one_of_many:
        session.config.stash[TOGETHER].start(session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    if in_faults(item.nodeid):
        item.config.stash[TOGETHER].start(item.session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not pyfuncitem.get_closest_marker("together"):
        return None
    together = pyfuncitem.config.stash[TOGETHER]
    together.scenarios[pyfuncitem.nodeid].result()
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[TOGETHER].end()

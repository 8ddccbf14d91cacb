"""The framework of the fault tests itself: two trivial tests that run together."""

from __future__ import annotations

import pytest

from tests.faults.place import Place

CODE = """
    import os, redis_bus
    bus = redis_bus.Bus("test")

    @bus.register()
    def pid():
        return os.getpid()
"""


@pytest.mark.together
def test_two_workers_of_one_place_are_two_processes_of_the_real_command(place: Place) -> None:
    workers = [place.serve(CODE), place.serve(CODE)]
    assert place.workers("pid") == 2
    with place.logged() as messages:
        assert place.bus().pid() in [worker.pid for worker in workers]
    assert messages == []
    for worker in workers:
        assert "serving pid on bus 'test'" in place.log(worker)
        assert worker.poll() is None
        worker.kill()
        worker.wait()
        assert place.is_listed(worker)  # its lease goes on
    place.note(f"served by {len(workers)} processes")


@pytest.mark.together(appendonly="yes", appendfsync="always")
def test_a_server_keeps_its_port_and_its_data_over_a_kill(place: Place) -> None:
    place.client.set("kept", 1)
    before = place.client.info()
    place.server.kill()
    place.server.start()
    after = place.client.info()
    assert place.client.get("kept") == b"1"
    assert (before["tcp_port"], before["run_id"]) != (after["tcp_port"], after["run_id"])
    assert before["tcp_port"] == after["tcp_port"]
    place.server.stop_signal()
    place.server.cont()
    place.server.restart()
    assert place.client.get("kept") == b"1"

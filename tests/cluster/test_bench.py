"""``redis-bus bench`` on several servers: what is bare goes where the keys of its bus are."""

from __future__ import annotations

import json

import click.testing

from redis_bus.cli.group import main
from tests.cluster.support import Servers


def test_all_is_measured_on_the_node_of_the_bus_and_nothing_is_left(servers: Servers) -> None:
    line = ["bench", "--rounds", "1", "--seconds", "0.02", "--json", "--url", servers.address]
    result = click.testing.CliRunner().invoke(main, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert all(figure["ratio"] is not None for figure in found["figures"])
    assert found["left"]["keys"] == 0
    with servers.client() as client:
        assert list(client.scan_iter()) == []

"""What the tests of the README's web service share: one HTTP request, and what it answered."""

from __future__ import annotations

import contextlib
import http.client

from tests.support import PATIENCE_SECONDS


def get(port: int, path: str) -> tuple[int, str]:
    """Return the status and the text that the service on a port answers."""
    connection = http.client.HTTPConnection("localhost", port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def answers(port: int) -> bool:
    """Whether a service on a port answers HTTP at all."""
    with contextlib.suppress(ConnectionError):
        get(port, "/no-such-page")
        return True
    return False

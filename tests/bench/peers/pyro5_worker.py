"""Pyro5: a daemon with a thread for each connection, its default server."""

import os

import Pyro5.api


@Pyro5.api.expose
class Calculator:
    def add(self, a: int, b: int) -> int:
        return a + b


daemon = Pyro5.api.Daemon(host="127.0.0.1", port=int(os.environ["PYRO5_PORT"]))
daemon.register(Calculator(), "calculator")
daemon.requestLoop()

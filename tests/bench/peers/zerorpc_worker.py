"""zerorpc: a server on TCP, a greenlet for each call."""

import os

import zerorpc


class Calculator:
    def add(self, a: int, b: int) -> int:
        return a + b


server = zerorpc.Server(Calculator())
server.bind(f"tcp://127.0.0.1:{os.environ['ZERORPC_PORT']}")
server.run()

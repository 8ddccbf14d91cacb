"""Pyro5: a proxy for each thread, as its documents ask for."""

import os

import Pyro5.api
from common import Call, serve


def make() -> Call:
    proxy = Pyro5.api.Proxy(f"PYRO:calculator@127.0.0.1:{os.environ['PYRO5_PORT']}")
    return lambda: proxy.add(1, 2)


serve(make)

"""The same over sockets, each side's two commands in one write; a socket for each thread."""

import itertools

from common import Call, serve
from side_by_side import BUS

from redis_bus.bench.bare import Wire, endpoint_of, floor
from redis_bus.bench.names import FLOOR, reply_list, request_list

numbers = itertools.count()


def make() -> Call:
    wire = Wire(endpoint_of(None, BUS))
    call = floor(wire, request_list(BUS, FLOOR), reply_list(BUS, FLOOR, next(numbers)))
    return lambda: int(call()[1])


serve(make)

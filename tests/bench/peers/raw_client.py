"""The raw pair's client: a socket and a list of replies for each thread."""

import itertools

from common import Call, serve
from raw import REQUEST, command, connect, popped

numbers = itertools.count()


def make() -> Call:
    connection, reply = connect(), b"raw:reply:%d" % next(numbers)
    both = command(b"LPUSH", REQUEST, reply) + command(b"BLPOP", reply, b"0")

    def call() -> int:
        connection.sendall(both)
        return int(popped(connection))

    return call


serve(make)

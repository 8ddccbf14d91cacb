"""What the scripts of a call cost inside Redis, beside scripts that only return.

    python tests/bench/floor.py [--rounds N]

The same commands, with the same keys and arguments, are sent with our scripts and with ``return 1``
in their place, which is the least that any script can cost. ``hot``: many in one write, as under
load; ``one by one``: each after the reply to the one before, as of one caller. Times are those of
INFO commandstats for EVALSHA, which contain what a script calls; the least of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import redis

from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol import scripts
from redis_bus.protocol.commands import Command, Post, Route, Service
from redis_bus.protocol.entries import Mode, parse_job

CALLS = 200
ETAG, SHAPE, ENTRY = "e" * 16, "s" * 16, "{job} 1 1 {end} {now} {etag} wait {now} - {method}\n"
BODY, VALUE, KEY = b"m\x92\x92\x01\x02\x80", b"m\x03", b"1/2"
NOW = 1_700_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        for script in scripts.load().values():
            client.script_load(script.source)
        least = str(client.script_load("return 1"))
        service = Service("floor", "")
        route, cached = Route(service, "plain", ETAG), Route(service, "cached", "c" * 16)
        post = Post(service, "host:1:abcdefgh", [route])
        for one in (route, cached):
            client.execute_command(*service.publish(one.method, one.etag, SHAPE))
        client.execute_command(*post.beat([]))
        _cache(client, cached)
        for title, commands in {
            "uncached call, 3 scripts": [
                c for n in range(CALLS) for c in _uncached(route, post, n)
            ],
            "cached hit, 1 script": [_hit(cached, n) for n in range(CALLS)],
        }.items():
            floor = [(c[0], least, *c[2:]) if c[0] == "EVALSHA" else c for c in commands]
            for kind, send in {"hot": _at_once, "one by one": _one_by_one}.items():
                ours, bare = _least(client, send, options.rounds, commands, floor)
                print(
                    f"{title:25} {kind:11} {ours / CALLS:6.1f} us, of which "
                    f"{bare / CALLS:5.1f} us are those of scripts that only return"
                )


def _cache(client: redis.Redis, route: Route) -> None:
    generation = client.hget(route.service.meta, route.method)
    assert isinstance(generation, bytes)
    client.set(route.cache(KEY), generation.split()[-1] + b" 0\n" + VALUE)


def _uncached(route: Route, post: Post, number: int) -> list[Command]:
    job = f"job{number:013d}"
    line = ENTRY.format(job=job, now=NOW, end=NOW + 60_000, etag=route.etag, method=route.method)
    done = post.finish(
        route, parse_job(line.encode()), VALUE, spent_us=5, expire_ms=-1, stale_ms=0, now_ms=NOW
    )
    return [
        route.call(job, BODY, mode=Mode.WAIT, budget_ms=60_000),
        ("LPOP", route.wake),  # as the BLPOP of a worker does, and that of the caller below
        post.take([route]),
        done,
        ("LPOP", route.service.reply(job)),
    ]


def _hit(route: Route, number: int) -> Command:
    return route.call(f"job{number:013d}", BODY, mode=Mode.CALL, budget_ms=60_000, key=KEY)


def _at_once(client: redis.Redis, commands: list[Command]) -> None:
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    pipe.execute()


def _one_by_one(client: redis.Redis, commands: list[Command]) -> None:
    for command in commands:
        client.execute_command(*command)


def _least(
    client: redis.Redis,
    send: Callable[[redis.Redis, list[Command]], None],
    rounds: int,
    *contenders: list[Command],
) -> list[float]:
    found = [float("inf")] * len(contenders)
    for _ in range(rounds):
        for index, commands in enumerate(contenders):
            client.config_resetstat()
            send(client, commands)
            spent = client.info("commandstats")["cmdstat_evalsha"]["usec"]
            found[index] = min(found[index], spent)
    return found


if __name__ == "__main__":
    main()

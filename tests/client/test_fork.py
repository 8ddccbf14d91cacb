"""Buses and processes: after a fork, in each start method of `multiprocessing`, in pickles."""

from __future__ import annotations

import pickle
import re
import textwrap
from typing import Any

import pytest
import redis

from redis_bus import AsyncBus, Bus
from redis_bus.embedded import EmbeddedRedis
from tests.support import PATIENCE_SECONDS, Processes, eventually, serving, workers

FACES = ["Bus", "AsyncBus"]
# What asyncio says in Python's development mode of a machine that is busy.
SLOW = re.compile(r"Executing <.* took [\d.]+ seconds$")


@pytest.fixture(scope="module")
def server(one_server: EmbeddedRedis) -> EmbeddedRedis:
    """Any: forks and pickles are not its doing."""
    return one_server


def echo(value: object) -> object:
    return value


def run(processes: Processes, *codes: str) -> str:
    """Run a program with Python's own checks; return what it printed. It is to warn of nothing."""
    processes.write("program.py", "\n".join(textwrap.dedent(code) for code in codes))
    # Python itself warns of forks among threads.
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    done = processes.run("python", "-X", "dev", *quiet, "program.py")
    said = [line for line in done.stderr.splitlines() if not SLOW.match(line)]
    assert (done.returncode, said) == (0, [])
    return done.stdout


# -- a process that has used its bus forks --------------------------------------------------------

OURS = """
    import os, redis

    def ours():
        with redis.Redis.from_url(os.environ["REDIS_BUS_URL"]) as client:
            return {one["id"] for one in client.client_list() if one["name"] == "ours"}
"""
# A master that imports an application and uses its bus, then forks, as gunicorn does with
# --preload. Each child ends as a program does, not at once: so its destructors run, too.
PRELOADED = {
    "Bus": """
        import sys, threading
        import redis_bus

        bus = redis_bus.Bus("test", client_name="ours")

        def use(who):
            for turn in range(40):
                answer = bus.echo([who, turn])
                assert answer == [who, turn], (who, turn, answer)

        def use_in_child(who):
            threads = [threading.Thread(target=use, args=(f"{who}.{n}",)) for n in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            bus.close()

        end = bus.close
    """,
    "AsyncBus": """
        import asyncio, sys, warnings
        import redis_bus

        bus = redis_bus.AsyncBus("test", client_name="ours")
        loop = asyncio.new_event_loop()

        async def calls(who):
            for turn in range(40):
                answers = await asyncio.gather(*(bus.echo([who, turn, n]) for n in range(4)))
                assert answers == [[who, turn, n] for n in range(4)], (who, turn, answers)

        def use(who):
            loop.run_until_complete(calls(who))

        def use_in_child(who):
            asyncio.run(calls(who))  # it closes the connections of its loop
            # Python warns of the master's loop, which is not this process's to close.
            warnings.simplefilter("ignore", ResourceWarning)

        def end():
            loop.run_until_complete(bus.aclose())
            loop.close()
    """,
}
MASTER = """
    use("before")
    before = ours()
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            use_in_child(number)
            sys.exit(0)
        children.append(child)
    use("master")
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 4, codes
    use("after")
    assert before and ours() == before, (before, ours())
    end()
    print("all went on")
"""


@pytest.mark.parametrize("face", FACES)
def test_a_master_that_used_its_bus_and_its_forks_call_at_once(
    bus: Bus, processes: Processes, face: str
) -> None:
    bus.register()(echo)
    with serving(bus):
        assert run(processes, OURS, PRELOADED[face], MASTER) == "all went on\n"


AMID = {
    "Bus": """
        import sys, threading
        import redis_bus

        bus = redis_bus.Bus("test", client_name="ours", timeout=30)
        found = []
        thread = threading.Thread(target=lambda: found.append(bus.held("master")))
        thread.start()

        def call_in_child():
            assert bus.echo("child") == "child"
            bus.close()

        def result():
            thread.join()
            bus.close()
            return found
    """,
    "AsyncBus": """
        import asyncio, sys, threading
        import redis_bus

        bus = redis_bus.AsyncBus("test", client_name="ours", timeout=30)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def hold():
            return [await bus.held("master")]

        held = asyncio.run_coroutine_threadsafe(hold(), loop)

        def call_in_child():
            async def call():
                assert await bus.echo("child") == "child"
            asyncio.run(call())

        def result():
            found = held.result()
            asyncio.run_coroutine_threadsafe(bus.aclose(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            return found
    """,
}
FORK_AMID = """
    client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
    assert client.blpop("began", 20)
    before = ours()
    child = os.fork()
    if not child:
        call_in_child()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert before and ours() == before, (before, ours())
    client.rpush("go", 1)
    client.close()
    print(result())
"""


@pytest.mark.parametrize("face", FACES)
def test_a_fork_while_another_thread_waits_for_its_call_disturbs_neither(
    bus: Bus, url: str, client: redis.Redis, processes: Processes, face: str
) -> None:
    @bus.register()
    def held(a: str) -> str:
        client.rpush("began", a)
        assert client.blpop("go", 20)
        return a

    with Bus("test", url=url) as other:
        other.register()(echo)
        with serving(bus), serving(other):
            assert run(processes, OURS, AMID[face], FORK_AMID) == "['master']\n"


FORKED_IN_C = """
    import ctypes, os, sys
    from redis_bus.calls.calls import new_job_id
    new_job_id()
    child = ctypes.CDLL(None).fork()  # of which Python does not hear
    sys.stdout.write(" ".join(new_job_id() for _ in range(100)) + "\\n")
    sys.stdout.flush()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_fork_that_python_does_not_hear_of_makes_ids_of_its_own(processes: Processes) -> None:
    out, err = processes.python(FORKED_IN_C).communicate(timeout=PATIENCE_SECONDS)
    assert err == ""
    assert len(set(out.split())) == len(out.split()) == 200


def test_a_process_that_a_coroutine_starts_may_call(bus: Bus, processes: Processes) -> None:
    bus.register()(echo)
    code = """
        import asyncio, multiprocessing
        import redis_bus

        bus = redis_bus.AsyncBus("test")

        async def call(who):
            for turn in range(20):
                assert await bus.echo([who, turn]) == [who, turn]

        def in_child():
            asyncio.run(call("child"))

        async def main():
            async with bus:
                await call("before")
                process = multiprocessing.get_context("fork").Process(target=in_child)
                process.start()
                await call("meanwhile")
                await asyncio.to_thread(process.join)
                await call("after")
                print(process.exitcode)

        asyncio.run(main())
    """
    with serving(bus):
        assert run(processes, code) == "0\n"


# -- a job forks ----------------------------------------------------------------------------------

FORKING = """
    import os, sys
    import redis_bus

    bus = redis_bus.Bus("test")

    @bus.register()
    def forks(how):
        child = os.fork()
        if child:
            return [how, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
        if how == "raises":
            raise ValueError("the child's own")
        if how == "exits":
            sys.exit(7)
        if how == "calls":
            assert bus.pid() != os.getpid()
            os._exit(8)
        return "the child's"

    @bus.register()
    async def forks_async(how):
        return forks(how)
"""
OTHER = """
    import os
    import redis_bus

    bus = redis_bus.Bus("test")

    @bus.register()
    def pid():
        return os.getpid()
"""


@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_what_a_job_forks_is_no_worker_however_it_ends(
    bus: Bus, processes: Processes, concurrency: str
) -> None:
    """Both would speak to Redis over one connection, and answer the call twice."""
    processes.write("service.py", FORKING)
    processes.write("other.py", OTHER)
    service = processes.start("redis-bus", "service.bus", "--concurrency", concurrency)
    processes.start("redis-bus", "other.bus")
    eventually(lambda: workers(bus, "forks") and workers(bus, "pid"))
    for method in (bus.forks, bus.forks_async):
        for how, code in (("returns", 1), ("raises", 1), ("exits", 7), ("calls", 8)):
            for _ in range(2):
                assert method(how) == [how, code]
    assert bus.stats()["forks"]["calls"] == 8
    assert not list(bus.conn.scan_iter("rb:{test:}:running:*"))
    assert workers(bus, "forks") == 1
    service.terminate()
    err = service.communicate(timeout=PATIENCE_SECONDS)[1]
    assert service.returncode == 0
    assert err.count("forks returned in a process that it had forked: that is no worker") == 2
    assert err.count("ValueError: the child's own") == 4
    assert "not wanted" not in err


# -- multiprocessing ------------------------------------------------------------------------------

APP = """
    import asyncio
    import redis_bus

    bus = redis_bus.Bus("test")
    async_bus = redis_bus.AsyncBus("test")

    def call(n):
        return bus.echo(n)

    def call_async(n):
        return asyncio.run(async_echo(n))

    async def async_echo(n):
        return await async_bus.echo(n)

    def call_given(given, n):
        return given.echo(n)

    async def awaited(method, n):
        return await method(n)

    def call_given_async(method, n):
        return asyncio.run(awaited(method, n))
"""
POOLS = """
    import multiprocessing, sys
    import app

    if __name__ == "__main__":
        numbers = list(range(12))
        assert app.bus.echo("before") == app.call_async("before") == "before"
        for name in sys.argv[1:] or ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(name).Pool(2) as pool:
                assert pool.map(app.call, numbers) == numbers
                assert pool.map(app.call_async, numbers) == numbers
                assert pool.map(app.bus.echo, numbers) == numbers
                assert pool.map(app.bus.echo.options(timeout=20), numbers) == numbers
                given = [(app.bus, n) for n in numbers]
                assert pool.starmap(app.call_given, given) == numbers
                given = [(app.async_bus.echo, n) for n in numbers]
                assert pool.starmap(app.call_given_async, given) == numbers
                assert app.bus.echo("after") == app.call_async("after") == "after"
                pool.close()
                pool.join()
        print("all answered")
"""


def test_each_start_method_of_multiprocessing_calls_over_a_bus_of_a_module(
    bus: Bus, processes: Processes
) -> None:
    bus.register()(echo)
    processes.write("app.py", APP)
    processes.write("pools.py", POOLS)
    with serving(bus):
        done = processes.run("python", "pools.py")
    assert (done.stdout, done.stderr) == ("all answered\n", "")


# -- pickles --------------------------------------------------------------------------------------


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("face", [Bus, AsyncBus])
def test_a_copy_of_a_bus_is_made_of_the_same_arguments(face: type[Any]) -> None:
    given = {
        "result_expire": 5,
        "cache_expire": None,
        "prefix": "math_",
        "url": "redis://somewhere:7000/3",
        "timeout": 2.5,
        "serializer": "json",
        "client_name": "me",
    }
    bus = face("test", **given)
    bus.register()(echo)
    copy = copied(bus)
    assert type(copy) is face
    assert repr(copy) == repr(bus)
    for name in ("name", "result_expire", "cache_expire", "prefix", "timeout"):
        assert getattr(copy, name) == getattr(bus, name)
    assert copy.serializer.name == "json"
    settings = copy.conn.connection_pool.connection_kwargs
    assert (settings["host"], settings["port"], settings["db"]) == ("somewhere", 7000, 3)
    assert settings["client_name"] == "me"
    # What was registered is served by the process that registered it.
    core = copy._core
    assert not core.registrations


def test_a_copy_of_a_bus_of_the_environment_leads_where_the_bus_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_BUS_URL", "redis://here:1/0")
    data = pickle.dumps(Bus())
    monkeypatch.setenv("REDIS_BUS_URL", "redis://there:2/0")
    assert repr(pickle.loads(data)) == "<Bus 'redis_bus' at here:1>"


def test_a_copy_of_a_method_is_called_with_its_options(bus: Bus) -> None:
    bus.register()(echo)
    bus.register("unserved")(echo)
    assert bus.get_method("unserved")
    with serving(bus, "echo"):
        method = copied(bus.echo)
        assert method("a") == "a"
        assert method.__name__ == "echo"
        hasty = copied(bus.unserved.options(timeout=0.2))
        with pytest.raises(TimeoutError, match=r"no reply in 0\.2 s"):
            hasty(1)


def test_what_cannot_be_pickled_says_what_to_do_instead(bus: Bus, client: redis.Redis) -> None:
    for face in (Bus, AsyncBus):
        given = face("test", client)
        text = rf"^<{face.__name__} 'test' .*it was given a connection, conn=; give it url= inst"
        with pytest.raises(TypeError, match=text):
            pickle.dumps(given)
        given.register_method(echo, "echo")
        with pytest.raises(TypeError, match=r"method echo.*cannot be pickled.*conn="):
            pickle.dumps(given["echo"])
    bus.register()(echo)
    with pytest.raises(TypeError, match="hand on a bus, a method of one, or the id of a result"):
        pickle.dumps(bus.echo.run(1))

"""Hooks: code of the user's that logs connections in, on connections of either kind.

A hook is a ``redis_connect_func`` or a credential provider. One that is ``async def`` works on the
connections of asyncio, any other on blocking ones. A bus may need both kinds: on the kind for which
it was not written, a hook is given a view of the connection that behaves as the other kind does.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import redis
import redis.asyncio as aioredis

T = TypeVar("T")
FUNCTION, PROVIDER = "redis_connect_func", "credential_provider"
# What a hook may take in all (s), where its connection has no limit of its own.
HOOK_SECONDS = 10.0
# Whoever defines a provider's methods here only says which there are to be.
_BASES = ("redis.credentials", "valkey.credentials")


class NotReadyError(redis.ConnectionError):
    """A connection was not made ready: nobody logged in, or the database was not selected."""


def is_async(function: object) -> bool:
    """Whether what a callable returns is to be awaited, as far as can be told from outside."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or (
        not inspect.isroutine(function)
        and not inspect.isclass(function)
        and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    )


def check(settings: dict[str, Any]) -> None:
    """Raise TypeError for code among settings that cannot be had on both kinds of connections."""
    function, provider = settings.get(FUNCTION), settings.get(PROVIDER)
    if function is not None:
        _check_function(function)
    if provider is not None and not isinstance(provider, _Provider):
        _Provider(provider)
    for name, value in settings.items():
        if name not in (FUNCTION, PROVIDER) and is_async(value):
            raise TypeError(
                f"{name}={_name(value)}: it is async, and is needed by blocking connections, too; "
                f"give a plain function"
            )


def _check_function(function: object) -> None:
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"{FUNCTION}={function!r}: a function of a connection, not {kind}")
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(
            f"{FUNCTION}={_name(function)}: a function, plain or async, not a generator"
        )


def on_blocking(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings whose hooks work on blocking connections."""
    return _adapted(settings, BlockingHook)


def on_asyncio(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings whose hooks work on connections of asyncio; see `prepare`, too."""
    return _adapted(settings, async_hook)


def _adapted(settings: dict[str, Any], adapt: Callable[[Any], Any]) -> dict[str, Any]:
    function, provider = settings.get(FUNCTION), settings.get(PROVIDER)
    if function is None and provider is None:
        return settings
    settings = dict(settings)
    if function is not None:
        settings[FUNCTION] = adapt(
            function.hook if isinstance(function, BlockingHook) else function
        )
    if provider is not None:
        settings[PROVIDER] = provider if isinstance(provider, _Provider) else _Provider(provider)
    return settings


def after_connect(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a hook that logs in as redis-py does, and then calls one of the user's."""
    _check_function(own)
    if is_async(own):

        async def connect_and_call(connection: Any) -> None:
            await connection.on_connect()
            await own(connection)

        return connect_and_call

    def connect_then_call(connection: Any) -> Any:
        connection.on_connect()
        return own(connection)

    return connect_then_call


async def prepare(connection: Any) -> None:
    """Fetch the credentials that a connection of asyncio is about to log in with.

    Older versions of redis-py ask a provider for them in the way of blocking connections.
    """
    provider = connection.credential_provider
    if isinstance(provider, _Provider):
        connection.credential_provider = _Fetched(await provider.get_credentials_async())


# -- functions --------------------------------------------------------------------------------


class BlockingHook:
    """A hook as blocking connections call it."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self.hook = hook

    def __call__(self, connection: Any) -> None:
        with _Watch(connection) as watch:
            if is_async(self.hook):
                seconds = connection.socket_timeout or HOOK_SECONDS
                _run(lambda: self.hook(_AwaitedView(connection)), seconds)
            else:
                _refuse_awaitable(self.hook, self.hook(connection))
        watch.check(self.hook)


def async_hook(hook: Callable[[Any], Any]) -> Callable[[Any], Awaitable[None]]:
    """Return a hook as connections of asyncio call it."""

    # A function, as redis-py awaits nothing else.
    async def connect(connection: Any) -> None:
        with _Watch(connection) as watch:
            if is_async(hook):
                await hook(connection)
            else:
                view = _BlockingView(connection, asyncio.get_running_loop())
                _refuse_awaitable(hook, await in_thread(lambda: hook(view)))
        watch.check(hook)

    return connect


def _refuse_awaitable(hook: object, result: object) -> None:
    """Raise NotReadyError where a plain function turns out to be an async one in disguise."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise NotReadyError(
            f"{FUNCTION} {_name(hook)} returned what is to be awaited: define it with async def"
        )


class _Watch:
    """Sees what is sent while a hook runs, so that what it forgot is noticed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._seen: set[bytes] = set()

    def __enter__(self) -> _Watch:
        connection, send = self._connection, self._connection.send_packed_command
        seen = self._seen

        def send_packed_command(command: Any, *args: Any, **kwargs: Any) -> Any:
            parts = [command] if isinstance(command, (bytes, str)) else list(command)
            data = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in parts).upper()
            seen.update(word for word in (b"AUTH", b"SELECT") if b"\r\n%b\r\n" % word in data)
            return send(
                parts if not isinstance(command, (bytes, str)) else command, *args, **kwargs
            )

        connection.send_packed_command = send_packed_command
        return self

    def __exit__(self, *_: object) -> None:
        del self._connection.send_packed_command

    def check(self, hook: object) -> None:
        """Raise NotReadyError where the settings ask for more than was done."""
        one = self._connection
        missing = []
        if (one.username or one.password or one.credential_provider) and b"AUTH" not in self._seen:
            missing.append("did not log in")
        if one.db and b"SELECT" not in self._seen:
            missing.append(f"did not select database {one.db}")
        if missing:
            raise NotReadyError(
                f"{FUNCTION} {_name(hook)} {' and '.join(missing)}: it is to call the connection's "
                f"on_connect(), which does both"
            )


class _AwaitedView:
    """A blocking connection for a hook that awaits what it does."""

    def __init__(self, connection: Any) -> None:
        object.__setattr__(self, "_connection", connection)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._connection, name)
        if not inspect.iscoroutinefunction(getattr(aioredis.Connection, name, None)):
            return value

        async def done_at_once(*args: Any, **kwargs: Any) -> Any:
            return value(*args, **kwargs)

        return done_at_once

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)


class _BlockingView:
    """A connection of asyncio for a hook that runs in a thread, and waits for what it does."""

    def __init__(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_loop", loop)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._connection, name)
        if not inspect.iscoroutinefunction(getattr(type(self._connection), name, None)):
            return value

        def wait_for(*args: Any, **kwargs: Any) -> Any:
            async def work() -> Any:
                return await value(*args, **kwargs)

            return asyncio.run_coroutine_threadsafe(work(), self._loop).result(HOOK_SECONDS)

        return wait_for

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)


# -- credential providers ---------------------------------------------------------------------


class _Provider(redis.CredentialProvider):
    """A credential provider of any kind, which both kinds of connections can ask.

    Raises TypeError for what can be asked in neither way.
    """

    def __init__(self, provider: Any) -> None:
        self.provider = provider
        self._plain = _method(provider, "get_credentials")
        self._async = _method(provider, "get_credentials_async")
        if self._plain is not None and is_async(self._plain):
            self._plain, self._async = None, self._async or self._plain
        if self._plain is None and self._async is None:
            raise TypeError(
                f"{PROVIDER}: {type(provider).__name__} has neither get_credentials() nor "
                f"get_credentials_async()"
            )

    def get_credentials(self) -> Any:
        fetch = self._plain or self._async
        assert fetch is not None
        found = fetch() if fetch is self._plain else _Later(fetch)
        if not inspect.isawaitable(found):
            return found

        async def wait() -> Any:
            return await found

        return _run(wait, HOOK_SECONDS)

    async def get_credentials_async(self) -> Any:
        if self._async is not None:
            found = self._async()
        else:
            assert self._plain is not None
            found = await in_thread(self._plain)
        return await found if inspect.isawaitable(found) else found


class _Later:
    """Calls an async function where it is awaited: on the loop that runs it."""

    def __init__(self, fetch: Callable[[], Any]) -> None:
        self._fetch = fetch

    def __await__(self) -> Generator[Any, None, Any]:
        found = self._fetch()
        if inspect.isawaitable(found):
            found = yield from found.__await__()
        return found


class _Fetched(redis.CredentialProvider):
    """Credentials that are known."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def get_credentials(self) -> Any:
        return self._found

    async def get_credentials_async(self) -> Any:
        return self._found


def _method(provider: Any, name: str) -> Callable[[], Any] | None:
    """Return a method that a provider has of its own; None where it only says what is to be."""
    for one in type(provider).__mro__:
        if name in vars(one):
            is_base = one.__name__ == "CredentialProvider" and one.__module__ in _BASES
            return None if is_base else getattr(provider, name)
    found: Any = getattr(provider, name, None)
    return found if callable(found) else None


# -- from one kind to the other ---------------------------------------------------------------


def _run(work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Run async code to its end on a loop of its own. Raises redis.TimeoutError, too."""

    async def limited() -> T:
        return await asyncio.wait_for(work(), seconds)

    def run() -> T:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(limited())
        except asyncio.TimeoutError:
            raise redis.TimeoutError(f"a hook took longer than {seconds:g} s") from None
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    # A loop runs in this thread: it cannot run another one.
    found: list[T] = []
    failed: list[BaseException] = []

    def keep() -> None:
        try:
            found.append(run())
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=keep, name="redis_bus hook", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


async def in_thread(work: Callable[[], T]) -> T:
    """Run code that may block, in a thread that nothing else can keep busy."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work()
        except StopIteration as stop:  # which no future takes
            error = RuntimeError(f"a hook raised {stop!r}")
        except BaseException as raised:  # noqa: BLE001 - it is raised where this is awaited
            error = raised
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    threading.Thread(target=run, name="redis_bus hook", daemon=True).start()
    return await future


def _name(value: object) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    return str(getattr(value, "__qualname__", type(value).__name__))

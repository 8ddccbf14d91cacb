from redis_bus import Bus
from tests.support import serving


def test_a_call_is_answered(bus: Bus) -> None:
    @bus.register()
    def add(a: int, b: int = 2) -> int:
        return a + b

    with serving(bus):
        assert bus.add(1) == 3

"""A console on the bus of these samples: ``python playground.py``.

It imports none of their code: what ``bus`` offers is found through Redis.
"""

from redis_bus import Bus
from redis_bus.cli.console import open_console

if __name__ == "__main__":
    open_console(Bus("sample_playground"))

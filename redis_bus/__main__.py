"""``python -m redis_bus``: the command line, where its script is not on PATH."""

from .cli.entry import main

if __name__ == "__main__":
    main()

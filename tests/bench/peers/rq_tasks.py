"""RQ imports a function by its name, so that it is in neither of the two programs."""


def add(a: int, b: int) -> int:
    return a + b

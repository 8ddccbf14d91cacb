"""The services that the README and ``redis-bus demo`` show."""

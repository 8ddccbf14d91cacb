"""Connections: to one server or many, blocking or on an event loop."""

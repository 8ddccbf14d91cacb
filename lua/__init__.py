"""The server side of the bus: one Lua script a step; `redis_bus.protocol.scripts` reads them."""

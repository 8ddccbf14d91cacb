"""A bus for the internal API of many small services, over the Redis they have already."""

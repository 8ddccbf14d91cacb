"""What ``redis-bus bench`` measures, and with what."""

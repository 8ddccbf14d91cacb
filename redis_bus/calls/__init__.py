"""The steps of a call's life, as generators; no I/O."""

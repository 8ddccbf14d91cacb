-- What Redis gives its scripts. Run over the joined ones: python -m redis_bus.protocol.scripts FOLDER
std = "lua51"
read_globals = {"redis", "KEYS", "ARGV"}
max_line_length = 100

-- What is included in a block has parameters of its own, which may be named as those around it.
ignore = {"431", "432"}

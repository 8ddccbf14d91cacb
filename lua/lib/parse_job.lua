-- A queue entry is a line of text, then the cache key and the arguments, as bytes:
-- '<job> <attempt> <deadline> <enqueued> <etag> <mode> <generation> <key size, -: none>\n'
-- Returns job, deadline, mode and key size; nil for bytes that are not ours.
local function parse_job(entry)
  return string.match(entry, '^(%S+) %d+ (%d+) %d+ %S+ (%a+) %d+ ([%d-]+)\n')
end

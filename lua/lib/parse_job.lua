-- A queue entry is a line of text, then the cache key and the arguments, as bytes:
-- '<job> <attempt> <tries> <deadline> <enqueued> <etag> <mode> <generation> <key size> <method>\n'
-- (a key size of -: no key)
-- Returns job, deadline, mode, key size, where the key begins, attempt, tries and enqueued; nil for
-- bytes that are not ours.
local modes = {wait = 1, call = 1, async = 1, run = 1, refresh = 1}
local function parse_job(entry)
  local job, attempt, tries, deadline, enqueued, mode, size, start = string.match(
    entry,
    '^([!-~]+) (%d+) (%d+) (%d+) (%d+) [!-~]+ (%a+) %d+ ([%d-]+) [%w_.-]+\n()'
  )
  if not modes[mode] then
    return nil
  end
  if size ~= '-' and (string.find(size, '-', 1, true) or tonumber(size) > #entry - start + 1) then
    return nil
  end
  return job, deadline, mode, size, start, tonumber(attempt), tonumber(tries), enqueued
end

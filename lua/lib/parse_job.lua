-- A queue entry is a line of text, then the cache key and the arguments, as bytes:
-- '<job> <attempt> <tries> <deadline> <enqueued> <etag> <mode> <generation> <key size> <method>\n'
-- (a key size of -: no key)
-- Returns job, deadline, mode, key size, where the key begins; nil for bytes that are not ours.
local function parse_job(entry)
  local job, deadline, mode, size, start = string.match(
    entry,
    '^([!-~]+) %d+ %d+ (%d+) %d+ [!-~]+ (%a+) %d+ ([%d-]+) [%w_.-]+\n()'
  )
  local waits = mode == 'wait' or mode == 'call' or mode == 'async' or mode == 'told'
  if not waits and mode ~= 'run' and mode ~= 'refresh' then
    return nil
  end
  if size ~= '-' and (string.find(size, '-', 1, true) or tonumber(size) > #entry - start + 1) then
    return nil
  end
  return job, deadline, mode, size, start
end

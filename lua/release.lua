-- release: give a claimed job back, not started, to the head of its queue.
--
-- KEYS  running, queue, wake, pending
-- ARGV  job, keep (ms that the outcome of a run is kept)
--
-- Returns 1, or 0 where this worker's claim does not stand. Sent twice, the second returns 0.
-- include: parse_job
-- include: put_job
-- include: note_pending
local running, queue, wake, pending = unpack(KEYS)
local job, keep = ARGV[1], ARGV[2]

local entry = redis.call('HGET', running, job)
if not entry then
  return 0
end
redis.call('HDEL', running, job)
local _, _, mode, size = parse_job(entry)
if mode == 'run' then
  local rest = string.match(entry, '\n(.*)$')
  note_pending(pending, job, size ~= '-' and string.sub(rest, 1, tonumber(size)), keep)
end
put_job('LPUSH', queue, wake, entry)
return 1

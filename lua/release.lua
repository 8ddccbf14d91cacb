-- release: give a claimed job back, not started, to the head of its queue.
--
-- KEYS  running, queue, wake, pending
-- ARGV  job
--
-- Returns 1, or 0 where this worker's claim does not stand. Sent twice, the second returns 0.
-- include: parse_job
-- include: put_job
local running, queue, wake, pending = unpack(KEYS)
local job = ARGV[1]

local entry = redis.call('HGET', running, job)
if not entry then
  return 0
end
redis.call('HDEL', running, job)
local _, _, mode, size = parse_job(entry)
if mode == 'run' then
  local rest = string.match(entry, '\n(.*)$')
  redis.call('HSET', pending, job, size ~= '-' and 'k' .. string.sub(rest, 1, tonumber(size)) or '')
end
put_job('LPUSH', queue, wake, entry)
return 1

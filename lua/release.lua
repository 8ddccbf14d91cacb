-- release: give a claimed job back, not started, to the head of its queue.
--
-- KEYS  running, queue, wake, pending
-- ARGV  job
--       grace   ms that a job with a cache key is kept past its deadline: it may have been joined
--
-- Returns 1, or 0 where this worker's claim does not stand. Sent twice, the second returns 0.
-- include: clock
-- include: put_back
local running, queue, wake, pending = unpack(KEYS)
local job, grace = ARGV[1], tonumber(ARGV[2])

local entry = redis.call('HGET', running, job)
if not entry then
  return 0
end
redis.call('HDEL', running, job)
put_back(queue, wake, pending, entry, now_ms(), grace)
return 1

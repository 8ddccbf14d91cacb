-- hold: write a worker's claim once more, so that a WAIT behind it tells whether replicas have it.
--
-- KEYS  running
-- ARGV  job
--
-- Returns 'held', or 'fenced' where this worker's claim does not stand: nothing is written then.
-- WAIT is about what its own connection wrote, and the claim may have come over another one. What
-- was written before, the enqueueing too, replicas have by then. Sent twice, it does so twice.
local running, job = KEYS[1], ARGV[1]
local entry = redis.call('HGET', running, job)
if not entry then
  return 'fenced'
end
-- HDEL comes first: a script that has begun to write goes on where memory is full.
redis.call('HDEL', running, job)
redis.call('HSET', running, job, entry)
return 'held'

-- cancel: withdraw a job that no worker has taken yet.
--
-- KEYS  queue, wake, pending, reply, inboxes
--       flight   only where the job has a cache key
-- ARGV  job, outcome (that it was cancelled), keep (ms that the outcome is kept)
--
-- Returns 'cancelled', 'late' (taken, finished, cancelled before or not to be cancelled), or
-- 'shared' (others wait for it; or they may, as the flight that would tell is gone).
-- It leaves the queue at once. Where it is not found there, a note has `take` pass over it.
-- Sent twice, the second answers 'late'.
-- include: read_flight
-- include: remove
-- include: reply
-- include: tell
local queue, wake, pending, reply, inboxes, flight = unpack(KEYS)
local job, outcome, keep = unpack(ARGV)

local noted = redis.call('HGET', pending, job)
if not noted or noted == '-' then
  return 'late'
end
if flight then
  local leader, _, shared = read_flight(flight)
  if leader ~= job or shared ~= '0' then
    return 'shared'
  end
  redis.call('DEL', flight)
end
-- HDEL comes first: a script that has begun to write goes on where memory is full.
local life = redis.call('PTTL', pending)
redis.call('HDEL', pending, job)
local found = remove(queue, job, tonumber(string.match(noted, '^%d+')))
if redis.call('EXISTS', queue) == 0 then
  redis.call('DEL', wake)
elseif not found then
  redis.call('HSET', pending, job, '-')
  if life > 0 then
    redis.call('PEXPIRE', pending, life)
  end
end
put_reply(reply, outcome, keep)
tell(inboxes, job, outcome)
return 'cancelled'

-- cancel: withdraw a job that no worker has taken yet.
--
-- KEYS  queue, wake, pending, reply, inboxes
--       flight   only where the job has a cache key
-- ARGV  job, outcome (that it was cancelled), keep (ms that the outcome is kept)
--       enqueued   only in mode 'told', of which nothing is noted: when it was, as `call` said; 0:
--                  unknown, it is found among those of its inbox, whose numbers ascend
--
-- Returns 'cancelled', 'late' (taken, finished, cancelled before or not to be cancelled), or
-- 'shared' (others wait for it; or they may, as the flight that would tell is gone).
-- It leaves the queue at once. Where it is not found there, a note has `take` pass over it; in mode
-- 'told' that is 'late', too, as it may have been taken: then nothing comes of the note.
-- Sent twice, the second answers 'late'.
-- include: outlive
-- include: read_flight
-- include: remove
-- include: reply
-- include: tell
local queue, wake, pending, reply, inboxes, flight = unpack(KEYS)
local job, outcome, keep, enqueued = unpack(ARGV)

local noted = redis.call('HGET', pending, job)
if noted == '-' or not (noted or enqueued) then
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
redis.call('HDEL', pending, job)
local found, is_there = remove(queue, job, tonumber(enqueued or string.match(noted, '^%d+')))
if redis.call('EXISTS', queue) == 0 then
  redis.call('DEL', wake)
elseif not found and (noted or is_there ~= false) then
  redis.call('HSET', pending, job, '-')
  local life = math.max(0, redis.call('PTTL', queue))
  outlive(pending, life, redis.call('HLEN', pending) == 1)
end
if not (found or noted or is_there) then
  return 'late'
end
put_reply(reply, outcome, keep)
tell(inboxes, job, outcome)
return 'cancelled'

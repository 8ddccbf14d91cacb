-- reclaim: give a job away whose worker's lease has ended, or fail it where it may not run again.
--
-- KEYS  workers, running, queue, wake, pending, reply, inboxes, stats, dead
--       flight   only where the job has a cache key
-- ARGV  worker, job, outcome (that it was lost), and:
--   keep    how long the outcome is kept for runs, `alone` for others
--   lease   `cap`: how long a flight lasts in the queue
--   letters how many dead letters are kept
--
-- Returns 'requeued', 'lost' (the outcome was put where the waiters are; a job that used up more
-- than one try, or that nobody may wait for, is kept as a dead letter), 'gone' (somebody else was
-- quicker, or it is no job) or 'alive' (the worker renewed its lease). Times are in ms.
-- The worker's own `finish` is fenced from here on. Sent twice, the second answers 'gone'.
-- include: answer
-- include: bury
-- include: clock
-- include: count
-- include: parse_job
-- include: parse_tries
-- include: put_back
-- include: read_flight
-- include: tell
local workers, running, queue, wake, pending, reply, inboxes, stats, dead, flight = unpack(KEYS)
local worker, job, outcome = unpack(ARGV)
local keep, alone, lease, cap, letters = unpack(ARGV, 4)
local now = now_ms()

local ends = redis.call('ZSCORE', workers, worker)
if ends and tonumber(ends) >= now then
  return 'alive'
end
local entry = redis.call('HGET', running, job)
if not entry then
  return 'gone'
end
redis.call('HDEL', running, job)
local _, deadline, mode = parse_job(entry)
local attempt, tries = parse_tries(entry)
local leader, _, shared = read_flight(flight)
if not mode then
  return 'gone' -- bytes that are no job
end

if attempt < tries then
  count(stats, 'retries', '1')
  if leader == job then
    redis.call('PEXPIRE', flight, cap + lease)
  end
  entry = string.gsub(entry, '^(%S+) %d+', '%1 ' .. string.format('%.0f', attempt + 1), 1)
  -- A run that joined waits for it as long as that takes.
  local grace = leader == job and shared == '2' and 1e13 or cap + lease
  put_back(queue, wake, pending, entry, now, grace)
  return 'requeued'
end

count(stats, 'lost', '1')
local joined = '0'
if leader == job then
  joined = shared
  redis.call('DEL', flight)
elseif flight then
  joined = '2'
end
if mode == 'run' then
  alone, deadline = keep, '0'
elseif mode == 'refresh' then
  alone = 0
end
answer(reply, outcome, joined, keep, alone, deadline)
tell(inboxes, job, outcome)
if tries > 1 or mode == 'run' then
  bury(dead, now, 'lost', worker, entry, letters)
end
return 'lost'

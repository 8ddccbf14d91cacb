-- admit: decide whether a claimed job that may share its flight still has to run, being late.
--
-- KEYS  running, reply, inboxes, meta, cache, flight
-- ARGV  job, method, generation (of the job), deadline (0: none), hold, keep (all ms);
--       hold: how long a flight lasts from here, unless `beat` renews it
--
-- Returns 'run', or, with the claim released: 'dropped' (nobody waits), 'moved' (another job
-- flies for the key: the waiters are told to wait for that one), 'answered' (from the cache);
-- or 'fenced' where this worker's claim does not stand any more: then nothing happens.
-- A flight lasts a bounded time in the queue, so that a lost queue never blocks a key; a job
-- taken after that has to look what became of its key. A job of an older generation may be of
-- another shape than what flies or is cached by now, so it just runs.
-- Sent twice, it says 'run' again, or 'fenced'.
-- include: clock
-- include: meta
-- include: entry
-- include: read_flight
-- include: write_flight
-- include: reply
-- include: tell
local running, reply, inboxes, meta, cache, flight = unpack(KEYS)
local job, method, own, deadline, hold, keep = unpack(ARGV)
deadline = tonumber(deadline)
local late = deadline > 0 and now_ms() > deadline

redis.call('HDEL', running, '') -- a script that has begun to write goes on where memory is full
if not redis.call('HGET', running, job) then
  return 'fenced'
end
local _, _, generation = parse_meta(redis.call('HGET', meta, method))
local leader, flown, shared = read_flight(flight)
if leader == job and not (late and shared == '0') then
  redis.call('PEXPIRE', flight, hold)
  return 'run'
end
if leader == job then
  redis.call('DEL', flight)
  redis.call('HDEL', running, job)
  return 'dropped'
end
if own ~= generation then
  return 'run'
end
if leader and flown == own then
  write_flight(flight, leader, flown, 2, 'KEEPTTL')
  put_reply(reply, '>' .. leader, keep)
  tell(inboxes, job, '>' .. leader)
  redis.call('HDEL', running, job)
  return 'moved'
end
local entry, _, start = live_entry(cache, own)
if entry then
  put_reply(reply, string.sub(entry, start), keep)
  tell(inboxes, job, string.sub(entry, start))
  redis.call('HDEL', running, job)
  return 'answered'
end
write_flight(flight, job, own, 2, 'PX', hold)
return 'run'

-- state: what the bus knows of a method, and of a job, for a message to a person.
--
-- KEYS  queue, serving; then `running` of the workers that may have claimed the job
-- ARGV  job ('': none), enqueued (ms, as `call` said; 0: unknown)
--
-- Returns {alive workers, jobs in the queue, where that job is: 'queued', 'claimed', 'unknown'}.
-- The queue is first in, first out, but for jobs put back at its head: what was not enqueued
-- before another one that waits may wait behind it. 'unknown' is said only of what does not wait.
-- Sent twice, it reads twice.
-- include: clock
local MOST = 100 -- entries to look at: more than were ever put back at once
local queue, serving = KEYS[1], KEYS[2]
local job, enqueued = ARGV[1], tonumber(ARGV[2])
local alive = redis.call('ZCOUNT', serving, now_ms(), '+inf')
local waiting, place = redis.call('LLEN', queue), nil

for index = 3, #KEYS do
  place = place or redis.call('HEXISTS', KEYS[index], job) == 1 and 'claimed'
end
for index = 0, (place or job == '') and -1 or math.min(waiting, MOST) - 1 do
  local entry = redis.call('LINDEX', queue, index)
  local other, since = string.match(entry, '^(%S+) %d+ %d+ %d+ (%d+) ')
  if other == job or (since and tonumber(since) <= enqueued) then
    place = 'queued'
    break
  end
end
if waiting > MOST then
  place = place or 'queued' -- it may be
end
return {alive, waiting, place or 'unknown'}

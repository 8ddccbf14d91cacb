-- state: what the bus knows of a method, for a message to a person.
--
-- KEYS  queue, serving
-- ARGV  job, enqueued (ms, as `call` said; 0: unknown)
--
-- Returns {alive workers, jobs in the queue, whether that job waits in it still: 1, 0}.
-- The queue is first in, first out: what was enqueued after its head is in it.
-- Sent twice, it reads twice.
-- include: clock
local queue, serving = KEYS[1], KEYS[2]
local job, enqueued = ARGV[1], tonumber(ARGV[2])
local alive = redis.call('ZCOUNT', serving, now_ms(), '+inf')
local head = redis.call('LINDEX', queue, 0)
local first, since
if head then
  first, since = string.match(head, '^(%S+) %d+ %d+ %d+ (%d+) ')
end
local waits = since and (first == job or tonumber(since) < enqueued)
return {alive, redis.call('LLEN', queue), waits and 1 or 0}

-- beat: renew a worker's lease, what it serves and the flights of the jobs that it runs.
--
-- KEYS  workers, running; then for each method: queue, wake, serving; then the flights of running
--       jobs
-- ARGV  worker
--       lease   ms; 0: the worker leaves. What it still holds is then given away by a sweep
--       hold    ms that a flight lasts: longer than the lease, so that a job that is given away
--               finds its own
--       number of methods, then the running jobs, one for each flight
--
-- Returns how many queues it found waiting without a wake token (each has one again).
-- Sent twice, it renews twice.
-- include: clock
-- include: read_flight
local workers, running = KEYS[1], KEYS[2]
local worker, lease, hold, methods = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now = now_ms()

-- A ZREM comes first: a script that has begun to write goes on where memory is full.
redis.call('ZREM', workers, '')
if lease > 0 then
  redis.call('ZADD', workers, now + lease, worker)
elseif redis.call('EXISTS', running) == 1 then
  redis.call('ZADD', workers, 0, worker)
else
  redis.call('ZREM', workers, worker)
end
local first, lost = methods * 3 + 3, 0
for index = 3, first - 1, 3 do
  local queue, wake, serving = KEYS[index], KEYS[index + 1], KEYS[index + 2]
  redis.call('ZREMRANGEBYSCORE', serving, '-inf', '(' .. now)
  if lease > 0 then
    redis.call('ZADD', serving, now + lease, worker)
    redis.call('PEXPIRE', serving, hold)
  else
    redis.call('ZREM', serving, worker)
  end
  if redis.call('EXISTS', queue) == 1 and redis.call('EXISTS', wake) == 0 then
    redis.call('RPUSH', wake, '1')
    lost = lost + 1
  end
end
for index = first, #KEYS do
  if read_flight(KEYS[index]) == ARGV[index - first + 5] then
    redis.call('PEXPIRE', KEYS[index], hold)
  end
end
return lost

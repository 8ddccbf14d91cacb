-- beat: renew a worker's lease, what it serves and the flights of the jobs that it runs.
--
-- KEYS  workers; then for each method: queue, wake, serving; then the flights of running jobs
-- ARGV  worker, lease (ms; 0: the worker leaves), number of methods, then the running jobs,
--       one for each flight
--
-- Returns how many queues it found waiting without a wake token (each has one again).
-- Sent twice, it renews twice.
-- include: clock
-- include: read_flight
local worker, lease, methods = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()

local function renew(alive)
  if lease == 0 then
    redis.call('ZREM', alive, worker)
    return
  end
  redis.call('ZADD', alive, now + lease, worker)
end

renew(KEYS[1])
local lost = 0
for index = 2, methods * 3 + 1, 3 do
  local queue, wake, serving = KEYS[index], KEYS[index + 1], KEYS[index + 2]
  redis.call('ZREMRANGEBYSCORE', serving, '-inf', '(' .. now)
  renew(serving)
  if redis.call('EXISTS', queue) == 1 and redis.call('EXISTS', wake) == 0 then
    redis.call('RPUSH', wake, 1)
    lost = lost + 1
  end
end
local first = methods * 3 + 2
for index = first, #KEYS do
  if read_flight(KEYS[index]) == ARGV[index - first + 4] then
    redis.call('PEXPIRE', KEYS[index], lease)
  end
end
return lost

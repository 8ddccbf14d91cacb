-- sweep: find the workers whose lease has ended, so that their jobs are given away or failed.
--
-- KEYS  workers, swept
-- ARGV  lease
--       gap    where nobody swept for that long, Redis itself may have stood still
--       most   workers to return
--
-- Returns {ms until the next lease ends, -1: none, worker, ...}. What such a worker has claimed is
-- looked up with `claims`, and each job given away with `reclaim`.
-- While Redis stands still no worker can renew its lease. So after a gap those that ended are
-- renewed once, for half a lease. Not so where the end is 0: that worker is known to be dead.
-- A lease that ends later than one granted now is of another clock, and is cut.
-- Sent twice, it finds the same.
-- include: clock
local workers, swept = KEYS[1], KEYS[2]
local lease, gap, most = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local now = now_ms()

-- DEL comes first: a script that has begun to write goes on where memory is full.
if redis.call('DEL', swept) == 0 then
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(0', '(' .. now)) do
    redis.call('ZADD', workers, now + lease / 2, worker)
  end
end
redis.call('SET', swept, 1, 'PX', gap)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(' .. now + lease, '+inf')) do
  redis.call('ZADD', workers, now + lease, worker)
end
local ended = redis.call('ZRANGEBYSCORE', workers, '-inf', '(' .. now, 'LIMIT', 0, most)
local first = redis.call('ZRANGEBYSCORE', workers, now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local left = first[2] and tonumber(first[2]) - now or -1
return {#ended < tonumber(most) and left or 0, unpack(ended)}

-- bury: put a queue entry that no worker can make anything of to the dead letters.
--
-- KEYS  dead
--       running   only where it was claimed
-- ARGV  worker, entry, letters (how many are kept), and the job, where it was claimed
--
-- Returns 'buried', or 'fenced' where the claim does not stand any more.
-- Sent twice, it buries twice, unless it was claimed: then the second is fenced.
-- include: bury
-- include: clock
local dead, running = KEYS[1], KEYS[2]
local worker, entry, letters, job = unpack(ARGV)
if running and redis.call('HDEL', running, job) == 0 then
  return 'fenced'
end
-- LTRIM comes first: a script that has begun to write goes on where memory is full.
redis.call('LTRIM', dead, -letters, -1)
bury(dead, now_ms(), 'foreign', worker, entry, letters)
return 'buried'

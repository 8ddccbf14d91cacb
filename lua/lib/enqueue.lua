-- include: put_job
-- include: drop_dead
-- Put a job at the end of a queue, which lives until its last job is dead: `life` ms, 0: for ever.
local function enqueue(queue, wake, pending, entry, life, now, grace)
  local waiting = put_job('RPUSH', queue, wake, entry)
  local left = waiting > 1 and redis.call('PTTL', queue) or 0
  if life > 0 and left >= 0 and left < life then
    redis.call('PEXPIRE', queue, life)
  elseif life == 0 and left > 0 then
    redis.call('PERSIST', queue)
  end
  if waiting > 100 then
    drop_dead(queue, pending, now, grace, 2)
  end
end

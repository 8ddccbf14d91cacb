-- Whether a queue has no room under a limit ('0': there is none), its dead jobs not counted.
local function is_full(queue, pending, limit, now, grace)
  if limit == '0' or redis.call('LLEN', queue) < tonumber(limit) then
    return false
  end
  -- include: drop_dead
  drop_dead(queue, pending, now, grace, 100)
  return redis.call('LLEN', queue) >= tonumber(limit)
end

-- include: parse_job
-- include: may_cancel
-- Forget jobs at the head of a queue that nobody waits for any more, so that it does not grow
-- while no worker takes them. One with a cache key may have been joined: it stays for `grace` ms.
local function drop_dead(queue, pending, now, grace, most)
  for _ = 1, most do
    local job, deadline, mode, size = parse_job(redis.call('LINDEX', queue, 0) or '')
    if not job then
      return
    end
    local is_late = deadline ~= '0' and now > tonumber(deadline) + (size == '-' and 0 or grace)
    if not is_late and not (may_cancel(mode) and redis.call('HGET', pending, job) == '-') then
      return
    end
    redis.call('LPOP', queue)
    if may_cancel(mode) then
      redis.call('HDEL', pending, job)
    end
  end
end

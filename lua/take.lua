-- take: claim the next job of the methods that a worker serves.
--
-- KEYS  running, workers; then for each method, the preferred one first: queue, wake, pending
-- ARGV  worker, lease (ms; a claim renews it, so that none is ever held without a lease)
--
-- Returns {method index, queue entry, now ms}, or nil when nothing waits. A method index of 0
-- comes with bytes that are no job of ours, and the method's index behind them.
-- Dropped on the way: cancelled jobs, and jobs past their deadline, which nobody waits for. One
-- that may have been joined meanwhile (it has a cache key) is left for `admit` to judge.
-- A worker sends this after it popped one wake token, of whichever method; so the first choice is
-- a queue that waits without a token. Sent twice, it claims a second job.
-- include: clock
-- include: may_cancel
-- include: parse_job
-- include: pop
local running, workers, now = KEYS[1], KEYS[2], now_ms()

local function next_job(queue, pending)
  local entry = pop(queue)
  while entry do
    local job, deadline, mode, size = parse_job(entry)
    if not job then
      return entry, nil
    end
    local late = deadline ~= '0' and now > tonumber(deadline) and size == '-'
    local noted = may_cancel(mode) and redis.pcall('HGET', pending, job)
    if type(noted) == 'string' then
      redis.call('HDEL', pending, job)
    end
    if not late and noted ~= '-' then
      return entry, job
    end
    entry = pop(queue)
  end
end

local function claim(index, token)
  local queue, wake = KEYS[index], KEYS[index + 1]
  local entry, job = next_job(queue, KEYS[index + 2])
  if not entry and not token then
    return nil
  end
  if redis.call('EXISTS', queue) == 0 then
    if token then
      redis.call('DEL', wake)
    end
  elseif not token then
    redis.call('RPUSH', wake, 1)
  end
  local method = index / 3
  if job then
    redis.call('ZADD', workers, now + ARGV[2], ARGV[1])
    redis.call('HSET', running, job, entry)
    return {method, entry, now}
  end
  return entry and {0, entry, now, method}
end

local tokens, found = {}, nil
for index = 3, #KEYS, 3 do
  if redis.call('EXISTS', KEYS[index + 1]) == 1 then
    tokens[#tokens + 1] = index
  elseif not found then
    found = claim(index, false)
  elseif redis.call('EXISTS', KEYS[index]) == 1 then
    -- This may be the token that the worker popped, and who else is about to take serves less.
    redis.call('RPUSH', KEYS[index + 1], 1)
  end
end
if found then
  return found
end
for _, index in ipairs(tokens) do
  local job = claim(index, true)
  if job then
    return job
  end
end
return nil

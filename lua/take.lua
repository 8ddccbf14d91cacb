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
-- include: next_job
local running, workers, now = KEYS[1], KEYS[2], now_ms()

local function claim(index, may_have_token)
  local queue, wake = KEYS[index], KEYS[index + 1]
  local entry, job = next_job(queue, KEYS[index + 2], now)
  if not entry then
    if may_have_token then
      redis.call('DEL', wake)
    end
    return nil
  end
  -- A queue that waits has one token, an empty one has none.
  if redis.call('EXISTS', queue, wake) == 1 and redis.call('DEL', wake) == 0 then
    redis.call('RPUSH', wake, '1')
  end
  local method = index / 3
  if job then
    redis.call('ZADD', workers, now + ARGV[2], ARGV[1])
    redis.call('HSET', running, job, entry)
    return {method, entry, now}
  end
  return {0, entry, now, method}
end

if #KEYS == 5 then
  return claim(3, true)
end
-- Whether any of those keys may exist, one of each method, from that one on.
local function any(first)
  local keys = {}
  for index = first, #KEYS, 3 do
    keys[#keys + 1] = KEYS[index]
  end
  -- Lua's stack has no room for more.
  return #keys > 5000 or (#keys > 0 and redis.call('EXISTS', unpack(keys)) > 0)
end

local tokens, found, has_tokens = {}, nil, any(4)
for index = 3, #KEYS, 3 do
  if has_tokens and redis.call('EXISTS', KEYS[index + 1]) == 1 then
    tokens[#tokens + 1] = index
  elseif not found then
    found = claim(index, false)
    if found and not has_tokens and not any(index + 3) then
      break
    end
  elseif redis.call('EXISTS', KEYS[index]) == 1 then
    -- This may be the token that the worker popped, and who else is about to take serves less.
    redis.call('RPUSH', KEYS[index + 1], '1')
  end
end
for _, index in ipairs(found and {} or tokens) do
  found = found or claim(index, true)
end
return found

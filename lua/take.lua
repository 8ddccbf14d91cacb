-- take: claim the next jobs of the methods that a worker serves.
--
-- KEYS  running, workers; then for each method, the preferred one first: queue, wake, pending
-- ARGV  worker, lease (ms; a claim renews it, so that none is ever held without a lease)
--       limit   how many jobs may be claimed; without it, one
--
-- Returns {method index, queue entry, now ms}, or nil when nothing waits; with a limit, a list of
-- those. An index of 0 comes with bytes that are no job of ours, and the method's index behind.
-- Dropped on the way: cancelled jobs, and jobs past their deadline, which nobody waits for. One
-- that may have been joined meanwhile (it has a cache key) is left for `admit` to judge.
-- A worker sends this after it popped one wake token, of whichever method; so the first choice is
-- a queue that waits without a token. Sent twice, it claims other jobs.
-- include: clock
-- include: next_job
local running, workers, now = KEYS[1], KEYS[2], now_ms()
local found, claimed, limit = {}, {}, tonumber(ARGV[3] or '1')

-- Claim what there is room for of one queue.
local function claim(index, may_have_token)
  local queue, wake, method = KEYS[index], KEYS[index + 1], index / 3
  local entry, job
  repeat
    entry, job = next_job(queue, KEYS[index + 2], now)
    if entry then
      found[#found + 1] = job and {method, entry, now} or {0, entry, now, method}
    end
    if job then
      claimed[#claimed + 1], claimed[#claimed + 2] = job, entry
    end
  until not entry or #found == limit
  -- A queue that waits has one token, an empty one has none.
  if not entry then
    return may_have_token and redis.call('DEL', wake)
  elseif redis.call('EXISTS', queue, wake) == 1 and redis.call('DEL', wake) == 0 then
    redis.call('RPUSH', wake, '1')
  end
end

local function claim_all()
  -- Whether any of those keys may exist, one of each method, from that one on.
  local function any(first)
    local keys = {}
    for index = first, #KEYS, 3 do
      keys[#keys + 1] = KEYS[index]
    end
    -- Lua's stack has no room for more.
    return #keys > 5000 or (#keys > 0 and redis.call('EXISTS', unpack(keys)) > 0)
  end
  local tokens, has_tokens = {}, any(4)
  for index = 3, #KEYS, 3 do
    if has_tokens and redis.call('EXISTS', KEYS[index + 1]) == 1 then
      tokens[#tokens + 1] = index
    elseif #found < limit then
      local before = #found
      claim(index, false)
      if #found > before and not has_tokens and not any(index + 3) then
        break
      end
    elseif redis.call('EXISTS', KEYS[index]) == 1 then
      -- This may be the token that the worker popped, and who else is about to take serves less.
      redis.call('RPUSH', KEYS[index + 1], '1')
    end
  end
  for _, index in ipairs(tokens) do
    if #found < limit then
      claim(index, true)
    end
  end
end

if #KEYS == 5 then
  claim(3, true)
else
  claim_all()
end
if claimed[1] then
  redis.call('ZADD', workers, now + ARGV[2], ARGV[1])
  redis.call('HSET', running, unpack(claimed))
end
return ARGV[3] and found[1] and found or found[1]

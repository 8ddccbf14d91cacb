-- Remove a job from its queue, wherever it waits. Entries are in the order in which they were
-- enqueued, but for those that were put back, which are at the head. `enqueued`: when that was, in
-- ms, if it is known; 0: the job is '<token>.<number>', and those of its token are in that order.
-- Returns whether it was removed: not one among very many that are in no order, nor one so deep in
-- a long queue that Redis would stand still for it. Then, whether it is there; nil: it may be.
local MOST, DEEPEST, WALK = 1000, 20000, 100
local function remove(queue, job, enqueued)
  local length = redis.pcall('LLEN', queue)
  if type(length) ~= 'number' then
    return false, false -- a key of another type
  end
  local token, number = string.match(enqueued == 0 and job or '', '^([^.]+%.)(%d+)$')
  local function look(index)
    local entry = redis.call('LINDEX', queue, index) or ''
    local found, since = string.match(entry, '^(%S+) %d+ %d+ %d+ (%d+) ')
    return found, tonumber(since)
  end
  -- From an index on: the first entry that tells whether it came before the job, and that it did.
  local function compare(first, last)
    if not token then
      local _, since = look(first)
      return first, not since or since < enqueued
    end
    local most = math.min(last, first + WALK - 1)
    for index = first, most do
      local found = look(index)
      if found and string.sub(found, 1, #token) == token then
        return index, (tonumber(string.sub(found, #token + 1)) or 0) < tonumber(number)
      end
    end
    return most, most < last
  end
  local function take_out(index)
    if math.min(index, length - index) > DEEPEST then
      return false, true
    end
    redis.call('LSET', queue, index, job)
    redis.call('LREM', queue, index < length / 2 and 1 or -1, job)
    return true
  end

  local low, high = 0, enqueued and length or 0
  while low < high do
    local middle = math.floor((low + high) / 2)
    local index, is_before = compare(middle, high - 1)
    if is_before then
      low = index + 1
    else
      high = middle
    end
  end
  local found, since = look(low)
  while found and (since == enqueued or (token and low < high + WALK)) do
    if found == job then
      return take_out(low)
    end
    low = low + 1
    found, since = look(low)
  end
  for index = 0, math.min(length, MOST) - 1 do
    if look(index) == job then
      return take_out(index)
    end
  end
  return false, length > MOST and nil
end

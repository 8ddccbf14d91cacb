-- Remove a job from its queue, wherever it waits; `enqueued`: when that was (ms), if it is known.
-- Entries are in the order of that, but for those that were put back, which are at the head.
-- Returns whether it was removed: not one among very many that are in no order, nor one so deep in
-- a long queue that Redis would stand still for it.
local MOST, DEEPEST = 1000, 20000
local function remove(queue, job, enqueued)
  local length = redis.pcall('LLEN', queue)
  if type(length) ~= 'number' then
    return false -- a key of another type
  end
  local function look(index)
    local entry = redis.call('LINDEX', queue, index) or ''
    local found, since = string.match(entry, '^(%S+) %d+ %d+ %d+ (%d+) ')
    return found, tonumber(since)
  end
  local function take_out(index)
    if math.min(index, length - index) > DEEPEST then
      return false
    end
    redis.call('LSET', queue, index, job)
    redis.call('LREM', queue, index < length / 2 and 1 or -1, job)
    return true
  end

  local low, high = 0, enqueued and length or 0
  while low < high do
    local middle = math.floor((low + high) / 2)
    local _, since = look(middle)
    if since and since >= enqueued then
      high = middle
    else
      low = middle + 1
    end
  end
  local found, since = look(low)
  while found and since == enqueued do
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
  return false
end

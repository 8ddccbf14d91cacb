-- generation: a number that is larger than any that was given out before it.
-- It is made of the time, so that a lost registry never brings an old one back.
local function next_generation(previous)
  local time = redis.call('TIME')
  local generation = time[1] * 1000000 + time[2]
  if previous and generation <= tonumber(previous) then
    generation = tonumber(previous) + 1
  end
  return string.format('%.0f', generation)
end

-- count: a statistic; a counter that is no number any more stays as it is and stops nothing.
-- `by` is text: to make text of a number takes Redis as long as to count.
local function count(stats, name, by)
  local counted = redis.pcall('HINCRBY', stats, name, by)
  if type(counted) == 'table' and string.find(counted.err, 'READONLY ', 1, true) then
    -- A replica: what it would answer may be old. It has the error told.
    redis.call('HINCRBY', stats, name, by)
  end
end

-- count: a statistic; a counter that is no number any more stays as it is and stops nothing.
-- `by` is text: to make text of a number takes Redis as long as to count.
local function count(stats, name, by)
  redis.pcall('HINCRBY', stats, name, by)
end

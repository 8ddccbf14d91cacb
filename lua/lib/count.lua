-- count: a statistic; a counter that is no number any more stays as it is and stops nothing.
local function count(stats, name, by)
  redis.pcall('HINCRBY', stats, name, by)
end

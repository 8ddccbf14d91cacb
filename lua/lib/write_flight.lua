-- The other half of read_flight; what follows are options of SET.
local function write_flight(flight, job, generation, shared, ...)
  redis.call('SET', flight, job .. ' ' .. generation .. ' ' .. shared, ...)
end

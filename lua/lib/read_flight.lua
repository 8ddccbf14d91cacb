-- A flight is '<job> <generation> <shared>': the job that may fill a cache key, and whether
-- others wait for it. Returns job, generation, '0' or '1'; nil where nothing flies.
local function read_flight(flight)
  local value = flight and redis.call('GET', flight)
  if not value then
    return nil
  end
  return string.match(value, '^(%S+) (%d+) ([01])$')
end

-- A flight is '<job> <generation> <shared>': the job that may fill a cache key, and who else waits
-- for it. Returns job, generation, '0' (nobody), '1' (calls) or '2' (also runs, which come back for
-- the outcome later); nil where nothing flies. A key of another type is no flight, so that it
-- stops no script half-way.
local function read_flight(flight)
  local value = flight and redis.pcall('GET', flight)
  if type(value) ~= 'string' then
    return nil
  end
  return string.match(value, '^(%S+) (%d+) ([012])$')
end

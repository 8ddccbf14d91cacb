-- include: clock
-- include: entry
-- include: read_flight
-- What there is under a cache key. Returns the entry that lives, where its outcome begins, whether
-- it is fresh, whether there are bytes not ours; then the flight that a call may join, as
-- read_flight does, and now, where that mattered.
local function look_up(cache, flight, generation)
  local entry, soft, start, foreign = live_entry(cache, generation)
  local now = soft ~= 0 and now_ms()
  local fresh = entry and (soft == 0 or now < soft)
  local leader, flown, shared = read_flight(not fresh and flight)
  return entry, start, fresh, foreign, leader, flown, shared, now
end

-- The next entry of a queue. A key of another type, that somebody else put there, counts as empty:
-- it stops its own method only, whose callers get Redis's error.
local function pop(queue)
  local entry = redis.pcall('LPOP', queue)
  return type(entry) == 'string' and entry
end

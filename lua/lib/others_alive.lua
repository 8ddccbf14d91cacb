-- Whether a worker alive serves a method, `but` (an id) not counted; '1': whether any does. Where
-- that worker itself is not listed, the list tells nothing, and others may be alive.
local function others_alive(serving, now, but)
  local alive = redis.call('ZCOUNT', serving, now, '+inf')
  if but == '1' then
    return alive > 0
  end
  local ends = redis.call('ZSCORE', serving, but)
  local is_listed = ends and tonumber(ends) >= now
  return alive > 1 or not is_listed
end

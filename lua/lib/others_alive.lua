-- Whether a worker alive serves a method, `but` (an id, or any text) not counted.
local function others_alive(serving, now, but)
  local alive = redis.call('ZCOUNT', serving, now, '+inf')
  local ends = redis.call('ZSCORE', serving, but)
  return alive > (ends and tonumber(ends) >= now and 1 or 0)
end

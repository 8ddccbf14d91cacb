-- discard: forget a cached value that a caller could not read, unless it is another one by now.
--
-- KEYS  cache
-- ARGV  sha1   hexadecimal digest of the entry that could not be read
--
-- Returns 1 where it was still there, else 0. Sent twice, the second returns 0.
local cache, sha1 = KEYS[1], ARGV[1]
local entry = redis.call('GET', cache)
if not entry or redis.sha1hex(entry) ~= sha1 then
  return 0
end
return redis.call('DEL', cache)

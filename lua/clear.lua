-- clear: forget the value under a cache key, and detach the flight that would fill it.
--
-- KEYS  meta, cache, flight
-- ARGV  method, etag
--
-- Returns 'cleared' where there was a value that a call would have been served, else 'nothing',
-- or 'stale' where another etag is published: the key may be made in another way by now.
-- The flight's job runs on and answers those who wait for it; it stores nothing, because the
-- flight is not its own any more. Sent twice, it clears twice.
-- include: meta
-- include: entry
local meta, cache, flight = unpack(KEYS)
local method, etag = ARGV[1], ARGV[2]
local published, _, generation = parse_meta(redis.call('HGET', meta, method))
if published ~= etag then
  return 'stale'
end
local entry = live_entry(cache, generation)
redis.call('UNLINK', cache, flight)
return entry and 'cleared' or 'nothing'

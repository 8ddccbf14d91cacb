-- clear_all: begin a new generation, so that no value or flight of a method counts any more.
--
-- KEYS  meta
-- ARGV  method, etag
--
-- Returns the generation, or nil where the method is not published (its values are dead then), or
-- 'stale' where another etag is published: its values may be in other partitions by now.
-- Old values are not touched, they vanish by their expiry. Sent twice, it clears twice.
-- include: meta
-- include: generation
local meta, method, own = KEYS[1], ARGV[1], ARGV[2]
local etag, shape, generation = parse_meta(redis.call('HGET', meta, method))
if not etag then
  return nil
end
if etag ~= own then
  return 'stale'
end
generation = next_generation(generation)
redis.call('HSET', meta, method, etag .. ' ' .. shape .. ' ' .. generation)
return generation

-- clear_all: begin a new generation, so that no value or flight of a method counts any more.
--
-- KEYS  meta
-- ARGV  method
--
-- Returns the generation, or nil where the method is not published (its values are dead then).
-- Old values are not touched, they vanish by their expiry. Sent twice, it clears twice.
-- include: meta
-- include: generation
local meta, method = KEYS[1], ARGV[1]
local etag, shape, generation = parse_meta(redis.call('HGET', meta, method))
if not etag then
  return nil
end
generation = next_generation(generation)
redis.call('HSET', meta, method, etag .. ' ' .. shape .. ' ' .. generation)
return generation

-- publish: note which registration of a method is the current one, where there is one partition.
--
-- KEYS[1]  meta     hash of the service: method -> '<etag> <shape> <generation>'
-- ARGV[1]  method
-- ARGV[2]  etag     16 characters: all that a registration says
-- ARGV[3]  shape    16 characters: what gives its cached values their meaning
--
-- Returns {'same'} where it is known already, else {'published', etag before or ''}; or
-- {'spread', partitions} where the service has, or had, several: then nothing happens, and it is to
-- be published in all of them, with `shut` and `open`.
-- Another shape begins a new generation: no value that was cached under the old one is served.
-- Sent twice, it answers 'same'.
-- include: meta
-- include: generation
local meta = KEYS[1]
local method, etag, shape = ARGV[1], ARGV[2], ARGV[3]

local known_etag, known_shape, generation = parse_meta(redis.call('HGET', meta, method))
local partitions = tonumber(redis.call('HGET', meta, '#')) or 1
if partitions > 1 then
  return {'spread', partitions}
end
if known_etag == etag and known_shape == shape then
  return {'same'}
end
if known_shape ~= shape then
  generation = next_generation(generation)
end
redis.call('HSET', meta, method, etag .. ' ' .. shape .. ' ' .. generation)
return {'published', known_etag or ''}

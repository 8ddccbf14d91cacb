-- open: let a method be called in a partition that was `shut`; once all of them were.
--
-- KEYS  meta
-- ARGV  method, etag, ballot (that `shut` gave)
--
-- Returns 'open', or 'later' where another registration was begun meanwhile: then nothing happens.
-- Sent twice, it answers 'open' again.
-- include: meta
local meta = KEYS[1]
local method, etag, ballot = unpack(ARGV)
local known_etag, shape, generation = parse_meta(redis.call('HGET', meta, method))
if redis.call('HGET', meta, '#' .. method) ~= ballot or not known_etag then
  return 'later'
end
if known_etag == '~' .. etag then
  redis.call('HSET', meta, method, etag .. ' ' .. shape .. ' ' .. generation)
end
return 'open'

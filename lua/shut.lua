-- shut: begin to publish a method in one of several partitions. Nobody can call it there until it
-- is `open`ed. No two partitions are ever open to callers of different registrations.
--
-- KEYS  meta     method -> '<etag> <shape> <generation>'; what begins with '~' is shut;
--                '#<method>' -> ballot; in partition 0: '#' -> span
-- ARGV  method, etag, shape
--       span     how many partitions the publisher knows of
--       ballot   '': this is partition 0, where each registration that is published gets a ballot,
--                larger than those before it
--
-- Returns {ballot, span}: how many partitions there ever were, all of which are to be shut before
-- one is opened; or {'later'} where a larger ballot was seen here: that publisher goes on.
-- Another shape begins a new generation: no value that was cached under the old one is served.
-- Where this registration was published already, nothing changes. Sent twice, it answers the same.
-- include: meta
-- include: generation
local meta = KEYS[1]
local method, etag, shape, span, ballot = unpack(ARGV)
span = tonumber(span)
local known_etag, known_shape, generation = parse_meta(redis.call('HGET', meta, method))
local is_known = (known_etag == etag or known_etag == '~' .. etag) and known_shape == shape
local last = redis.call('HGET', meta, '#' .. method)

if ballot == '' then
  local most = tonumber(redis.call('HGET', meta, '#')) or 1
  if span > most then
    redis.call('HSET', meta, '#', span)
  end
  span = math.max(span, most)
  ballot = is_known and last or next_generation(last or nil)
elseif last and tonumber(last) > tonumber(ballot) then
  return {'later'}
end
if not (is_known and last == ballot) then
  if known_shape ~= shape then
    generation = next_generation(generation)
  end
  redis.call('HSET', meta, '#' .. method, ballot)
  redis.call('HSET', meta, method, '~' .. etag .. ' ' .. shape .. ' ' .. generation)
end
return {ballot, span}

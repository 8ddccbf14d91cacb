-- call: answer from the cache, join the flight, or enqueue: decided in one step.
--
-- KEYS  meta, stats, queue, wake, reply, pending, serving; where it has a cache_key: cache, flight
-- ARGV  method, etag, job, budget (until nobody waits any more; 0: no deadline), and:
--   mode    'wait': the caller blocks on reply already, so it gets a refusal there too; 'told': on
--           its inbox; 'call', 'async': once it knows for what; 'run': it comes within `keep`
--   limit   jobs that may wait; 0: any number
--   fast    refuse where no worker alive but this one serves ('1': none at all); '0': never
--   tries   how often the job may run, where workers die of it
--   lease   how long a flight outlives its budget, of which at most `cap` counts
--   key, body   the cache key and the arguments, as the worker shall get them
-- Returns {'hit', entry}, {'joined', job}, {'queued', job, now} (and 1 where the key holds bytes
-- not ours), or {'stale'} (another etag), {'full'}, {'no_workers'}; `now` alone where it is queued
-- in mode 'wait' or 'told'. Times are in ms. Sent twice, it may enqueue twice.
-- include: clock
-- include: published
-- include: write_flight
-- include: is_full
-- include: others_alive
-- include: enqueue
-- include: count
local meta, stats, queue, wake, reply, pending, serving, cache, flight = unpack(KEYS)
local method, etag, job, budget, mode, limit, fast, tries = unpack(ARGV)
local keep, lease, cap, key, body = unpack(ARGV, 9)
local function refuse(word)
  if mode == 'wait' then
    -- include: reply
    put_reply(reply, word, lease)
  end
  return {word}
end

local generation = generation_under(etag, redis.call('HGET', meta, method))
if not generation then
  return refuse('stale')
end
local grace, entry, start, fresh, foreign, leader, flown, shared, now = cap + lease
if flight then
  -- include: look_up
  entry, start, fresh, foreign, leader, flown, shared, now = look_up(cache, flight, generation)
end
now = now or not flight and now_ms()
if entry and mode == 'run' then
  -- include: reply
  put_reply(reply, string.sub(entry, start), keep)
end
local full = not fresh and is_full(queue, pending, limit, now, grace)
if fresh or (entry and (flown == generation or full)) then
  count(stats, 'hits', '1')
  return {'hit', entry}
end
if not entry and fast ~= '0' and not others_alive(serving, now, fast) then
  return refuse('no_workers')
end
budget = math.min(tonumber(budget), 1e13)
local life = budget > 0 and budget + grace or 0
if flown == generation then
  local sharing = mode == 'run' and '2' or '1'
  if sharing > shared then
    write_flight(flight, leader, flown, sharing, 'KEEPTTL')
  end
  outlive(queue, life, false)
  count(stats, 'joins', '1')
  return {'joined', leader}
elseif full then
  return refuse('full')
end
if entry then -- past its soft expiry: one runs behind this caller's back
  job, mode = job .. 'r', 'refresh'
end
if flight then
  write_flight(flight, job, generation, 0, 'PX', math.min(life > 0 and budget or cap, cap) + lease)
end
local head = job .. ' 1 ' .. tries .. ' ' .. (budget > 0 and now + budget or 0) .. ' ' .. now
local rest = ' ' .. etag .. ' ' .. mode .. ' ' .. generation .. ' ' .. (flight and #key or '-')
local line, note = head .. rest .. ' ' .. method .. '\n' .. key .. body, flight and 'k' .. key or ''
enqueue('RPUSH', queue, wake, pending, job, mode, now .. note, line, life, now, grace)
count(stats, entry and 'hits' or 'queued', '1')
local is_alone = mode == 'wait' or mode == 'told'
return entry and {'hit', entry} or is_alone and now or {'queued', job, now, foreign}

-- finish: reply to every waiter, and store the value only if it is still valid; in one step.
--
-- KEYS  running, reply, stats
--       inboxes               not in mode 'wait', whose only caller blocks
--       meta, cache, flight   only where the job has a cache key
-- ARGV  job, outcome, and:
--   keep      how long the outcome is kept for runs that joined, or may have
--   alone     how long it is kept where nobody joined, and at the most until `deadline`;
--             0: nobody reads it
--   deadline  when the caller gives up; 0: unknown
--   spent     us that the function ran
--   method, generation   of the job
--   expire    how long the value is served; -1: for ever; 0: it is not stored
--   stale     how long after that it is served while it is refreshed
--
-- Returns 'done', or 'fenced' where this worker's claim does not stand any more: then nothing
-- happens. An outcome beginning with 'e' is an error and is never stored. Times are in ms.
-- Sent twice, the second is fenced.
-- include: answer
-- include: count
local running, reply, stats, inboxes, meta, cache, flight = unpack(KEYS)
local job, outcome, keep, alone, deadline, spent, method, generation, expire, stale = unpack(ARGV)

if redis.call('HDEL', running, job) == 0 then
  return 'fenced'
end
count(stats, 'runs', '1')
count(stats, 'run_us', spent)
local failed = string.byte(outcome) == 101 -- e
if failed then
  count(stats, 'errors', '1')
end

local function store()
  -- include: clock
  -- include: meta
  local _, _, current = parse_meta(redis.pcall('HGET', meta, method))
  expire, stale = tonumber(expire), tonumber(stale)
  if failed or expire == 0 or current ~= generation then
    return
  end
  if expire < 0 then
    redis.call('SET', cache, generation .. ' 0\n' .. outcome)
    return
  end
  local soft = stale > 0 and now_ms() + expire or 0
  local entry = generation .. ' ' .. string.format('%.0f', soft) .. '\n' .. outcome
  redis.call('SET', cache, entry, 'PX', expire + stale)
end

local joined = '0'
if flight then
  -- include: read_flight
  local leader, _, shared = read_flight(flight)
  joined = leader ~= job and '2' or shared
  if leader == job then
    redis.call('DEL', flight)
    store()
  end
end
answer(reply, outcome, joined, keep, alone, deadline)
if inboxes then
  -- include: tell
  tell(inboxes, job, outcome)
end
return 'done'

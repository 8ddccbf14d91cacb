-- claims: what a worker whose lease has ended still holds; one that holds nothing is forgotten.
--
-- KEYS  workers, running
-- ARGV  worker
--
-- Returns {job, head, ...}: a head is a queue entry up to the end of its cache key, or '' for bytes
-- that are no job of ours, which are deleted. Nothing where the worker is alive again.
-- Sent twice, it reads twice.
-- include: clock
-- include: parse_job
local workers, running = KEYS[1], KEYS[2]
local worker = ARGV[1]

local ends = redis.call('ZSCORE', workers, worker)
if ends and tonumber(ends) >= now_ms() then
  return {}
end
local fields, found = redis.pcall('HGETALL', running), {} -- a key of another type holds nothing
for index = 1, #fields, 2 do
  local job, _, _, size, start = parse_job(fields[index + 1])
  local head = ''
  if job == fields[index] then
    head = string.sub(fields[index + 1], 1, start - 1 + (size == '-' and 0 or tonumber(size)))
  else
    redis.call('HDEL', running, fields[index])
  end
  found[#found + 1] = fields[index]
  found[#found + 1] = head
end
if #found == 0 then
  redis.call('ZREM', workers, worker)
end
return found

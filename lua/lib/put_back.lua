-- include: parse_job
-- include: parse_tries
-- include: enqueue
-- Put a job that was claimed to the head of its queue, as it was: a run may be cancelled again.
-- Those who joined a job that is late by now may still wait. Bytes that are no job go back too.
local function put_back(queue, wake, pending, entry, now, grace)
  local job, deadline, mode, size, start = parse_job(entry)
  local _, _, enqueued = parse_tries(job and entry or '')
  local key = start and size ~= '-' and 'k' .. string.sub(entry, start, start + tonumber(size) - 1)
  local note = (enqueued or '') .. (key or '')
  local life = 0
  if (deadline or '0') ~= '0' then
    life = math.max(1, math.min(tonumber(deadline) - now, 1e13)) + grace
  end
  enqueue('LPUSH', queue, wake, pending, job, mode, note, entry, life, now, grace)
end

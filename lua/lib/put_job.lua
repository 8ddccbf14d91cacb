-- Push an entry on a queue; a queue that was empty gets the token that wakes one idle worker.
-- There is never a second token, and a queue that waits has one, or a worker about to take.
-- A key of another type there stops nothing. Returns how many jobs wait.
local function put_job(push, queue, wake, entry)
  local waiting = redis.call(push, queue, entry)
  local tokens = waiting == 1 and redis.pcall('RPUSH', wake, '1')
  if type(tokens) == 'number' and tokens > 1 then
    redis.pcall('LPOP', wake)
  end
  return waiting
end

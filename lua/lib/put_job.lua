-- Push an entry on a queue; a queue that was empty gets the token that wakes one idle worker.
-- There is never a second token, and a queue that waits has one, or a worker about to take.
-- Returns how many jobs wait.
local function put_job(push, queue, wake, entry)
  local waiting = redis.call(push, queue, entry)
  if waiting == 1 and redis.call('RPUSH', wake, '1') > 1 then
    redis.call('LPOP', wake)
  end
  return waiting
end

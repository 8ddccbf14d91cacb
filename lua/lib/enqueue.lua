-- include: put_job
-- include: outlive
-- include: may_cancel
-- Push a job on a queue, which lives until its last job is dead: `life` ms, 0: for ever. `note`,
-- '<enqueued, ms>' and 'k<key>' where it has a key, is put into `pending`, for a job that others
-- than its caller may cancel. Notes of a queue that is gone are of no use.
local function enqueue(push, queue, wake, pending, job, mode, note, entry, life, now, grace)
  local waiting = put_job(push, queue, wake, entry)
  outlive(queue, life, waiting == 1)
  if may_cancel(mode) then
    if waiting == 1 then
      redis.call('DEL', pending)
    end
    if mode ~= 'told' then
      redis.call('HSET', pending, job, note)
      outlive(pending, life, redis.call('HLEN', pending) == 1)
    end
  end
  if waiting > 100 then
    -- include: drop_dead
    drop_dead(queue, pending, now, grace, 2)
  end
end

-- include: may_cancel
-- include: parse_job
-- include: pop
-- Take the next entry off a queue. Returns it and its job; the job is nil for bytes that are not
-- ours. Passed over are cancelled jobs, and jobs past their deadline that nobody can have joined.
local function next_job(queue, pending, now)
  local entry = pop(queue)
  while entry do
    local job, deadline, mode, size = parse_job(entry)
    if not job then
      return entry, nil
    end
    local late = deadline ~= '0' and now > tonumber(deadline) and size == '-'
    local noted = may_cancel(mode) and redis.pcall('HGET', pending, job)
    if type(noted) == 'string' then
      redis.call('HDEL', pending, job)
    end
    if not late and noted ~= '-' then
      return entry, job
    end
    entry = pop(queue)
  end
end

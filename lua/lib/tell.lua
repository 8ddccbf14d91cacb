-- Tell the clients that listen for a job, each on its inbox, a channel, that the outcome is there;
-- it comes along where it is short. A job '<token>.<number>' is told on 'rb:inbox:<token>', too,
-- without having been listened for. What they miss they find in the reply list.
local function tell(inboxes, job, outcome)
  local message = job .. ' ' .. (#outcome <= 4096 and outcome or '')
  local token = string.match(job, '^([^.]+)%.')
  if token then
    local inbox = 'rb:inbox:' .. token
    redis.pcall('PUBLISH', inbox, message)
  end
  local others = redis.pcall('SMEMBERS', inboxes)
  for _, inbox in ipairs(others) do
    redis.pcall('PUBLISH', inbox, message)
  end
  if others[1] or others.err then
    redis.pcall('DEL', inboxes)
  end
end

-- Tell the clients that listen for a job, each on its inbox, a channel, that the outcome is there;
-- it comes along where it is short. What they miss they find in the reply list.
local function tell(inboxes, job, outcome)
  for _, inbox in ipairs(redis.pcall('SMEMBERS', inboxes)) do
    redis.pcall('PUBLISH', inbox, job .. ' ' .. (#outcome <= 4096 and outcome or ''))
  end
  redis.pcall('DEL', inboxes)
end

-- reply: put a job's outcome where its waiters block; it is kept for `keep` ms.
local function put_reply(reply, outcome, keep)
  redis.call('RPUSH', reply, outcome)
  redis.call('PEXPIRE', reply, keep)
end

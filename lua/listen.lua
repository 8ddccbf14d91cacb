-- listen: have a client told of a job's outcome on its inbox, a channel that it subscribes.
--
-- KEYS  reply, inboxes
-- ARGV  inbox, keep (ms that this is remembered)
--
-- Returns the outcome where it is there already, else nil. Sent twice, it is told once.
local reply, inboxes = KEYS[1], KEYS[2]
local inbox, keep = ARGV[1], ARGV[2]
local outcome = redis.call('LINDEX', reply, 0)
if outcome then
  return outcome
end
redis.call('SADD', inboxes, inbox)
redis.call('PEXPIRE', inboxes, keep)
return nil

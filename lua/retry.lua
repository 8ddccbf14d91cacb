-- retry: give the job in a dead letter to the workers again.
--
-- KEYS  dead, queue, wake, pending, reply
-- ARGV  letter   as it is in the list
--       entry    the queue entry to try, with the letter's job, an attempt more and more tries
--
-- Returns 1, or 0 where the letter is not there any more. The outcome that says that the job was
-- lost is forgotten. Sent twice, the second returns 0.
-- include: clock
-- include: put_back
local dead, queue, wake, pending, reply = unpack(KEYS)
local letter, entry = unpack(ARGV)
if redis.call('LREM', dead, 1, letter) == 0 then
  return 0
end
redis.call('DEL', reply)
put_back(queue, wake, pending, entry, now_ms(), 0)
return 1

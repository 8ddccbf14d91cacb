-- pending: a run that waits can be cancelled; the note is 'k' and its cache key, or ''.
-- The runs of a service share a hash, which lasts as long as the outcome that is kept longest.
local function note_pending(pending, job, key, keep)
  redis.call('HSET', pending, job, key and 'k' .. key or '')
  if redis.call('PTTL', pending) < tonumber(keep) then
    redis.call('PEXPIRE', pending, keep)
  end
end

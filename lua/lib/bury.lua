-- A dead letter is a line, "<when, ms> <why> <worker>", then the queue entry; `most` are kept.
local function bury(dead, now, why, worker, entry, most)
  redis.call('RPUSH', dead, string.format('%.0f %s %s\n', now, why, worker) .. entry)
  redis.call('LTRIM', dead, -most, -1)
end

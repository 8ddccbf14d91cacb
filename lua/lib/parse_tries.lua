-- Returns attempt, tries and when it was enqueued, of a queue entry that is ours (see parse_job).
local function parse_tries(entry)
  local attempt, tries, enqueued = string.match(entry, '^%S+ (%d+) (%d+) %d+ (%d+) ')
  return tonumber(attempt), tonumber(tries), enqueued
end

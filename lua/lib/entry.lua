-- entry: a cached value, '<generation> <soft expiry in ms, 0: none>\n<outcome>'.
-- Returns the entry under a key, its soft expiry and where its outcome begins; nil where there
-- is none of this generation; where there are bytes that are not ours, a fourth value says so.
local function live_entry(cache, generation)
  local entry = cache and redis.call('GET', cache)
  if not entry then
    return nil
  end
  local _, last, written, soft = string.find(entry, '^(%d+) (%d+)\n')
  if not written or written ~= generation then
    return nil, nil, nil, not written and 1 or nil
  end
  return entry, tonumber(soft), last + 1
end

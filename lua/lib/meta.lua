-- meta: one field a method, '<etag> <shape> <generation>'; etag and shape have 16 characters.
-- Returns the three; nil where the method is not published, or the bytes are not ours.
local function parse_meta(field)
  if type(field) ~= 'string' then
    return nil
  end
  return string.match(field, '^(%S+) (%S+) (%d+)$')
end

-- meta: one field a method, '<etag> <shape> <generation>'; etag and shape have 16 characters.
local function parse_meta(field)
  if not field then
    return nil
  end
  return string.sub(field, 1, 16), string.sub(field, 18, 33), string.sub(field, 35)
end

-- What stands in meta of a method (see meta.lua): its generation where it has that etag, else nil.
local function generation_under(etag, field)
  if field and string.find(field, etag, 1, true) == 1 then
    return string.match(field, '^ %S+ (%d+)$', #etag + 1)
  end
end

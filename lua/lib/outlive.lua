-- Let a key live for `life` ms at least, 0: for ever. It may have an expiry unless it is new.
local function outlive(key, life, is_new)
  local left = is_new and 0 or redis.call('PTTL', key)
  if life > 0 and left >= 0 and left < life then
    redis.call('PEXPIRE', key, life)
  elseif life == 0 and left >= 0 and not is_new then
    redis.call('PERSIST', key)
  end
end

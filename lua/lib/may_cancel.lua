-- Whether a job of that mode is noted in `pending`, where it may be cancelled until it is taken.
local function may_cancel(mode)
  return mode == 'run' or mode == 'async'
end

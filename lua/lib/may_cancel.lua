-- Whether a job of that mode may be cancelled until it is taken, and so may stand in `pending`.
local function may_cancel(mode)
  return mode == 'run' or mode == 'async' or mode == 'told'
end

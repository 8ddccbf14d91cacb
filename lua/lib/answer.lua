-- include: reply
-- Put an outcome where its waiters come for it, as long as one may come. `joined`: '0' nobody,
-- '1' calls, '2' runs may have; `keep`: ms for runs; `alone`: ms where nobody joined, at the most
-- until `deadline` (0: unknown). All are text.
local BRIEF = '60000' -- ms in which a call that joined begins to wait
local function answer(reply, outcome, joined, keep, alone, deadline)
  local life = joined == '2' and keep or alone
  if joined == '1' and tonumber(alone) < tonumber(BRIEF) then
    life = BRIEF
  elseif joined == '0' and deadline ~= '0' then
    -- include: clock
    life = math.min(alone, deadline - now_ms())
  end
  if tonumber(life) > 0 then
    put_reply(reply, outcome, life)
  end
end

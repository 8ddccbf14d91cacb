-- include: clock
-- include: reply
-- Put an outcome where its waiters come for it, as long as one may come. `joined`: '0' nobody,
-- '1' calls, '2' runs may have; `keep`: ms for runs; `alone`: ms where nobody joined, at the most
-- until `deadline` (0: unknown).
local BRIEF = 60000 -- ms in which a call that joined begins to wait
local function answer(reply, outcome, joined, keep, alone, deadline)
  if joined == '2' then
    alone = keep
  elseif joined == '1' then
    alone = math.max(alone, BRIEF)
  elseif deadline > 0 then
    alone = math.min(alone, deadline - now_ms())
  end
  if alone > 0 then
    put_reply(reply, outcome, alone)
  end
end

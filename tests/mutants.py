"""Faults for the scripts, each of which the machine must find; or it proves nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from redis_bus.protocol import folders, scripts
from redis_bus.protocol.scripts import Script


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: what it does, the file below ``lua/``, and the text that is replaced in it."""

    name: str
    file: str
    text: str
    instead: str
    rule: int  # of `tests.cache_model.RULES`: the promise that it breaks

    def read(self) -> str:
        return (folders.find("lua") / f"{self.file}.lua").read_text(encoding="utf-8")

    def scripts(self) -> dict[str, Script]:
        """The scripts with the fault in them, each under a SHA1 of its own."""
        parts = re.split(r"^ *-- include: .*\n", self.read(), flags=re.MULTILINE)
        right = next(part for part in parts if self.text in part)  # as it is in joined scripts
        wrong = right.replace(self.text, self.instead)
        return {
            name: scripts.make(name, script.source.replace(right, wrong))
            for name, script in scripts.load().items()
        }


MUTANTS = [
    Mutant(
        "finish stores whoever's flight it is",
        "finish",
        "  if leader == job then\n    redis.call('DEL', flight)\n    store()\n  end",
        "  if leader == job then\n    redis.call('DEL', flight)\n  end\n  store()",
        4,
    ),
    Mutant(
        "finish stores under the current generation",
        "finish",
        "failed or expire == 0 or current ~= generation then\n    return\n  end",
        "failed or expire == 0 or not current then\n    return\n  end\n  generation = current",
        4,
    ),
    Mutant(
        "finish stores before it looks whether its claim stands",
        "finish",
        "if redis.call('HDEL', running, job) == 0 then\n",
        "if cache then\n"
        "  redis.call('SET', cache, generation .. ' 0\\n' .. outcome, 'PX', 9999)\nend\n"
        "if redis.call('HDEL', running, job) == 0 then\n",
        10,
    ),
    Mutant(
        "finish is not fenced",
        "finish",
        "if redis.call('HDEL', running, job) == 0 then",
        "if redis.call('HDEL', running, job) == 2 then",
        10,
    ),
    Mutant(
        "who joined is not answered",
        "lib/answer",
        "if tonumber(life) > 0 then\n",
        "if tonumber(life) > 0 and joined == '0' then\n",
        3,
    ),
    Mutant(
        "finish believes that nobody joined a flight that is gone",
        "finish",
        "joined = leader ~= job and '2' or shared",
        "joined = shared or '0'",
        3,
    ),
    Mutant(
        "finish stores errors",
        "finish",
        "if failed or expire == 0",
        "if expire == 0",
        1,
    ),
    Mutant(
        "finish stores what is not to be kept",
        "finish",
        "  if failed or expire == 0 or current",
        "  expire = expire == 0 and 9999 or expire\n  if failed or current",
        5,
    ),
    Mutant(
        "finish forgets the expiry",
        "finish",
        "  redis.call('SET', cache, entry, 'PX', expire + stale)",
        "  redis.call('SET', cache, entry)",
        13,
    ),
    Mutant(
        "finish leaves its flight",
        "finish",
        "    redis.call('DEL', flight)\n    store()",
        "    store()",
        2,
    ),
    Mutant(
        "a call joins a flight from before clear_all",
        "call",
        "if flown == generation then\n  local sharing",
        "if leader then\n  local sharing",
        4,
    ),
    Mutant(
        "a call does not say that it joined",
        "call",
        "    write_flight(flight, leader, flown, sharing, 'KEEPTTL')\n",
        "",
        3,
    ),
    Mutant(
        "a run joins as if it waited already",
        "call",
        "local sharing = mode == 'run' and '2' or '1'",
        "local sharing = '1'",
        3,
    ),
    Mutant(
        "a call runs beside the flight",
        "call",
        "if flown == generation then\n  local sharing",
        "if flown == generation and shared ~= '0' then\n  local sharing",
        2,
    ),
    Mutant(
        "every caller of a stale value starts a run",
        "call",
        "if fresh or (entry and (flown == generation or full)) then",
        "if fresh or (entry and full) then",
        6,
    ),
    Mutant(
        "a stale value is served and not refreshed",
        "call",
        "if fresh or (entry and (flown == generation or full)) then",
        "if entry then",
        6,
    ),
    Mutant(
        "a stale value is not served",
        "lib/look_up",
        "  local leader, flown, shared = read_flight(not fresh and flight)",
        "  entry = fresh and entry\n"
        "  local leader, flown, shared = read_flight(not fresh and flight)",
        6,
    ),
    Mutant(
        "a call does not look who is published",
        "call",
        "generation_under(etag, redis.call('HGET', meta, method))",
        "string.match(redis.call('HGET', meta, method) or '', '(%d+)$')",
        7,
    ),
    Mutant(
        "values of any generation live",
        "lib/entry",
        "if not written or written ~= generation then",
        "if not written then",
        4,
    ),
    Mutant(
        "bytes that are not ours are served",
        "lib/entry",
        "  if not written or written ~= generation then\n",
        "  if not written then\n    return entry, 0, 1\n  elseif written ~= generation then\n",
        8,
    ),
    Mutant(
        "a job is queued without a token",
        "lib/put_job",
        "waiting == 1 and redis",
        "waiting == 9 and redis",
        11,
    ),
    Mutant(
        "a queue gets a token too many",
        "lib/put_job",
        "waiting == 1 and redis.pcall('RPUSH', wake, '1')",
        "redis.pcall('RPUSH', wake, '1') == 0",
        11,
    ),
    Mutant(
        "take forgets the token where more wait",
        "take",
        "redis.call('DEL', wake) == 0",
        "redis.call('DEL', wake) == 2",
        11,
    ),
    Mutant(
        "take does not claim",
        "take",
        "  redis.call('HSET', running, unpack(claimed))\n",
        "",
        3,
    ),
    Mutant(
        "take begins at the end of the queue",
        "lib/next_job",
        "  local entry = pop(queue)\n  while",
        "  local entry = redis.call('RPOP', queue)\n  while",
        12,
    ),
    Mutant(
        "take passes over the first",
        "lib/next_job",
        "  local entry = pop(queue)\n  while",
        "  pop(queue)\n  local entry = pop(queue)\n  while",
        12,
    ),
    Mutant(
        "discard forgets a newer value",
        "discard",
        "if not entry or redis.sha1hex(entry) ~= sha1 then",
        "if not entry then",
        8,
    ),
    Mutant(
        "clear does not detach the flight",
        "clear",
        "redis.call('UNLINK', cache, flight)",
        "redis.call('UNLINK', cache)",
        4,
    ),
    Mutant(
        "clear leaves the value",
        "clear",
        "redis.call('UNLINK', cache, flight)",
        "redis.call('UNLINK', flight)",
        4,
    ),
    Mutant(
        "clear_all keeps the generation",
        "clear_all",
        "generation = next_generation(generation)\n",
        "",
        4,
    ),
    Mutant(
        "clear_all does not look who is published",
        "clear_all",
        "if etag ~= own then",
        "if false then",
        7,
    ),
    Mutant(
        "publish keeps the generation of another shape",
        "publish",
        "if known_shape ~= shape then",
        "if not generation then",
        7,
    ),
    Mutant(
        "a lost registry brings an old generation back",
        "lib/generation",
        "local generation = time[1] * 1000000 + time[2]",
        "local generation = 1",
        4,
    ),
    Mutant(
        "admit lets every job run",
        "admit",
        "local _, _, generation = parse_meta(redis.call('HGET', meta, method))",
        "if true then\n  return 'run'\nend\n"
        "local _, _, generation = parse_meta(redis.call('HGET', meta, method))",
        2,
    ),
    Mutant(
        "admit drops a job that others wait for",
        "admit",
        "if leader == job and not (late and shared == '0') then",
        "if leader == job and not late then",
        3,
    ),
    Mutant(
        "admit does not ask whether the claim stands",
        "admit",
        "if not redis.call('HGET', running, job) then",
        "if false then",
        10,
    ),
    Mutant(
        "admit moves waiters to a job of another shape",
        "admit",
        "if own ~= generation then\n  return 'run'\nend\nif leader and flown == own then",
        "if leader and flown == generation then",
        7,
    ),
    Mutant(
        "admit answers with a value of another shape",
        "admit",
        "if own ~= generation then\n  return 'run'\nend\n",
        "own = generation or own\n",
        7,
    ),
    Mutant(
        "admit moves waiters, and the job that they wait for does not know",
        "admit",
        "  write_flight(flight, leader, flown, 2, 'KEEPTTL')\n",
        "",
        3,
    ),
    Mutant(
        "admit does not take the flight again",
        "admit",
        "write_flight(flight, job, own, 2, 'PX', hold)\n",
        "",
        2,
    ),
    Mutant(
        "cancel ignores that others wait",
        "cancel",
        "if leader ~= job or shared ~= '0' then",
        "if leader ~= job then",
        9,
    ),
    Mutant(
        "cancel leaves the flight",
        "cancel",
        "  redis.call('DEL', flight)\n",
        "",
        2,
    ),
    Mutant(
        "cancel tells nobody",
        "cancel",
        "put_reply(reply, outcome, keep)\n",
        "",
        3,
    ),
    Mutant(
        "cancel withdraws only what is noted",
        "cancel",
        "not (noted or enqueued)",
        "not noted",
        9,
    ),
    Mutant(
        "cancel takes what a worker has taken for withdrawn",
        "cancel",
        "if not (found or noted or is_there) then",
        "if false then",
        10,
    ),
    Mutant(
        "a job that names its inbox is noted",
        "lib/enqueue",
        "if mode ~= 'told' then",
        "if mode then",
        12,
    ),
    Mutant(
        "cancel leaves the job in its queue, and it runs",
        "cancel",
        "remove(queue, job, tonumber(enqueued or string.match(noted, '^%d+')))",
        "true",
        9,
    ),
    Mutant(
        "cancel leaves the job in its queue, to be passed over",
        "lib/remove",
        "if type(length) ~= 'number' then\n",
        "if type(length) == 'number' then\n",
        9,
    ),
    Mutant(
        "cancel takes another job out of the queue",
        "lib/remove",
        "redis.call('LSET', queue, index, job)\n",
        "redis.call('LSET', queue, 0, job)\n",
        12,
    ),
    Mutant(
        "release keeps the claim",
        "release",
        "redis.call('HDEL', running, job)\n",
        "",
        10,
    ),
    Mutant(
        "a job is put back at the end of its queue",
        "lib/put_back",
        "enqueue('LPUSH', queue",
        "enqueue('RPUSH', queue",
        12,
    ),
    Mutant(
        "a run that is put back may not be cancelled again",
        "lib/put_back",
        "job, mode, note",
        "job, 'none', note",
        12,
    ),
    Mutant(
        "beat does not put back a lost token",
        "beat",
        "    redis.call('RPUSH', wake, '1')\n",
        "",
        11,
    ),
    Mutant(
        "outcomes are kept for ever",
        "lib/reply",
        "  redis.call('PEXPIRE', reply, keep)\n",
        "",
        13,
    ),
    Mutant(
        "what is served is said for ever",
        "beat",
        "    redis.call('PEXPIRE', serving, hold)\n",
        "",
        13,
    ),
    Mutant(
        "beat forgets a worker that leaves and holds jobs",
        "beat",
        "elseif redis.call('EXISTS', running) == 1 then",
        "elseif false then",
        14,
    ),
    Mutant(
        "take does not renew the lease",
        "take",
        "  redis.call('ZADD', workers, now + ARGV[2], ARGV[1])\n",
        "",
        14,
    ),
    Mutant(
        "sweep does not know that Redis may have stood still",
        "sweep",
        "if redis.call('DEL', swept) == 0 then",
        "if false then",
        14,
    ),
    Mutant(
        "sweep takes each sweep for the first after a pause",
        "sweep",
        "redis.call('SET', swept, 1, 'PX', gap)\n",
        "",
        14,
    ),
    Mutant(
        "sweep renews who is known to be dead",
        "sweep",
        "workers, '(0', '('",
        "workers, '-inf', '('",
        14,
    ),
    Mutant(
        "claims does not ask whether the worker is alive",
        "claims",
        "if ends and tonumber(ends) >= now_ms() then",
        "if false then",
        14,
    ),
    Mutant(
        "claims forgets a worker that holds jobs",
        "claims",
        "if #found == 0 then",
        "if true then",
        14,
    ),
    Mutant(
        "claims does not forget who holds nothing",
        "claims",
        "  redis.call('ZREM', workers, worker)\n",
        "",
        14,
    ),
    Mutant(
        "reclaim does not ask whether the worker is alive",
        "reclaim",
        "if ends and tonumber(ends) >= now then",
        "if false then",
        14,
    ),
    Mutant(
        "reclaim leaves the claim",
        "reclaim",
        "redis.call('HDEL', running, job)\n",
        "",
        10,
    ),
    Mutant(
        "reclaim does not count the attempt",
        "reclaim",
        "attempt + 1)",
        "attempt)",
        12,
    ),
    Mutant(
        "reclaim tries for ever",
        "reclaim",
        "if attempt < tries then",
        "if attempt then",
        14,
    ),
    Mutant(
        "reclaim fails what may run again",
        "reclaim",
        "if attempt < tries then",
        "if attempt + 2 < tries then",
        14,
    ),
    Mutant(
        "reclaim tells nobody",
        "reclaim",
        "answer(reply, outcome, joined, keep, alone, deadline)\n",
        "",
        3,
    ),
    Mutant(
        "reclaim leaves the flight of what is lost",
        "reclaim",
        "  joined = shared\n  redis.call('DEL', flight)\n",
        "  joined = shared\n",
        2,
    ),
    Mutant(
        "reclaim keeps no letter of a run",
        "reclaim",
        "if tries > 1 or mode == 'run' then",
        "if tries > 1 then",
        14,
    ),
]

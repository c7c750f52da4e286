-- Apply a numbered entry that carries a rank, if it is the producer's next: the twin of Tree.apply for presume, late and
-- correct. An attempt's record says what was charged at which rank; a higher rank replaces it, any other only moves the
-- mark. Records leave when the database has them, and must be recalled before such an attempt is charged again.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  4 charges:{root}  then one per counter, one per slot set
-- ARGV  1 doubles: now (µs, 0: TIME), number, rank, cost (nano-dollars), requests, input, output, cached (tokens), fresh
--           (1: nobody can have charged the attempt before, or 0), number of counters, slot sets, origins;
--           then per counter: end of its period, its expiry (µs, 0: never); per origin: number,
--           whether the attempt was held when the producer was buried at it (1), or was this number of it (0)
--       2 producer  3 attempt  4 number  5 rank LF cost LF requests LF input LF output LF cached LF what else is known
--       6 prefix of counter keys  then the producer of each origin
-- Reply {status, mark, counter}: 0 ok (now or before), 1 gap, 2 cold, 3 absent as in apply.lua, 4 unknown: the record of
--       the attempt must be recalled first, 5 damaged as in apply.lua (counter 0: one that the attempt's hold names).
-- include: clock.lua
-- include: counter.lua
-- include: holds.lua
-- include: marks.lua
-- The record of an attempt that nothing is charged for.
local UNCHARGED = '0\n0\n0\n0\n0\n0\n'
local plan, producer, attempt, record, prefix = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local given, entry, rank, cost, requests, input, output, cached, fresh, counter_count, slot_count, origin_count, at =
  read('<dddddddddddd', plan)
-- include: numbered.lua

local before = call('HGET', KEYS[4], attempt)
if not before and fresh == 0 then
  return {4, mark, 0}
end
local had_rank, had_cost, had_requests, had_input, had_output, had_cached =
  string.match(before or UNCHARGED, '^(%d+)\n(-?%d+)\n(-?%d+)\n(-?%d+)\n(-?%d+)\n(-?%d+)\n')
had_rank = tonumber(had_rank)

local expiries, ends = {}, {}
for i = 1, counter_count do
  ends[i], expiries[i], at = read('<dd', plan, at)
end
-- 1 it counts, 0 it was counted under the number it had, -1 nobody can tell.
local fate, orphan_of = rank > 0 and 1 or -1, nil
for i = 1, origin_count do
  local number, held
  number, held, at = read('<dd', plan, at)
  local there = call('HGET', KEYS[1], ARGV[6 + i])
  local reached = included(tonumber(there or 0))
  if held == 1 then
    orphan_of = ARGV[6 + i]
  end
  if not there or held == 1 and number < reached then
    fate = math.min(fate, -1)
  elseif held == 0 and number <= reached then
    fate = math.min(fate, 0)
  end
end
local rises = fate == 1 and rank > had_rank
local counters = {}
for i = 1, counter_count do
  counters[i] = call('GET', KEYS[4 + i])
  if counters[i] and #counters[i] < COUNTER_BYTES then
    return {5, mark, i}
  end
  if rises and not counters[i] and ends[i] > 0 and ends[i] <= clock(given) then
    return {3, mark, i}
  end
end
local amount, owner, names = string.match(call('HGET', KEYS[2], attempt) or '', '^(%d+)\n([^\n]*)\n([^\n]*)\n')
if amount and not all_counters(prefix, names) then
  return {5, mark, 0}
end

-- Nothing below can fail: validate first, write last. The removal of a field that nobody has checks a type.
call('HDEL', KEYS[3], '')
if amount and (not orphan_of or owner == orphan_of) then
  call('HDEL', KEYS[2], attempt)
  release_hold(prefix, names, amount)
  for i = 1, slot_count do
    pcall(call, 'ZREM', KEYS[4 + counter_count + i], attempt)
  end
end
if rises then
  for i = 1, counter_count do
    local key = KEYS[4 + i]
    local raw = call('GET', key)
    local spent, kept, all_requests, all_input, all_output, all_cached = 0, 0, 0, 0, 0, 0
    if raw then
      spent, kept, all_requests, all_input, all_output, all_cached = read(COUNTER, raw)
    end
    local packed = pack(COUNTER, spent + cost - had_cost, kept, all_requests + requests - had_requests,
      all_input + input - had_input, all_output + output - had_output, all_cached + cached - had_cached)
    if raw then
      call('SET', key, packed .. sync, 'KEEPTTL')
    else
      counter_make(key, packed .. sync, expiries[i])
    end
    call('HSET', KEYS[3], string.sub(key, #prefix + 1), sync)
  end
  call('HSET', KEYS[4], attempt, record)
end
if before or rises then
  call('HSET', KEYS[3], '!' .. attempt, sync)
end
if fate == -1 then
  call('HSET', KEYS[4], '?' .. attempt, record)
  call('HSET', KEYS[3], '!?' .. attempt, sync)
end
call('HSET', KEYS[1], producer, ARGV[4])
return {0, entry, 0}

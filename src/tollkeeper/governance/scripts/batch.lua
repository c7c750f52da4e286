-- Apply several numbered entries of the kinds settle and void, if the first is the producer's next and nothing is in
-- the way of any: the twin of Tree.apply_all in domain/tree.py. What the entries share is read once and written once.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  then one per counter, one per log, one per slot set
-- ARGV  1 doubles: now (µs, 0: TIME), number of the first entry, number of entries, of counters, logs and slot sets, length
--           of the prefix of counter keys; then per counter: end of its period, its expiry (µs, 0: never);
--           then per entry: charges (1, or 0 for a void), hold, cost (nano-dollars), requests, input, output, cached (tokens),
--           how many counters, runs and slots it has; the place of each counter among the keys of counters, from 1; per run:
--           the place of its log, generation, index, requests and tokens to add; the place of each slot set
--       2 producer  3 number of the last entry  then the attempt of each entry
-- Reply {status, mark}: 0 ok (now or before). Anything else says that nothing was changed: 1 gap, 2 cold, 3 a counter of a
--       period that has ended is not here, 5 one is damaged; or an error of Redis. Then each is sent alone, to apply.lua.
-- include: clock.lua
-- include: window.lua
-- include: amend.lua
-- include: counter.lua
local plan, producer = ARGV[1], ARGV[2]
local given, first, entry_count, counter_count, log_count, slot_count, prefix, at = read('<ddddddd', plan)
local last = first + entry_count - 1
local tree = call('HMGET', KEYS[1], 'sync', producer)
local sync, mark = tree[1], tonumber(tree[2] or 0)
if not sync then
  return {2, 0}
end
if last <= mark then
  return {0, mark}
end
if first ~= mark + 1 then
  return {1, mark}
end

local counters, flagging = {}, false
for i = 1, counter_count do
  local raw = call('GET', KEYS[3 + i])
  local counter
  if raw then
    if #raw < COUNTER_BYTES then
      return {5, mark}
    end
    local spent, held, requests, input, output, cached = read(COUNTER, raw)
    counter = {spent, held, requests, input, output, cached, charged = false}
    counter.flagged = string.sub(raw, COUNTER_BYTES + 1) == sync
    at = at + 16
  else
    local ends, expires
    ends, expires, at = read('<dd', plan, at)
    if ends > 0 and ends <= clock(given) then
      return {3, mark}
    end
    counter = {0, 0, 0, 0, 0, 0, charged = false, flagged = false, expires = expires}
  end
  flagging = flagging or not counter.flagged
  counters[i] = counter
end

-- Validate first, write last, as in apply.lua.
if flagging then
  call('HDEL', KEYS[3], '')
end
local logs, leaving = {}, {}
for entry = 1, entry_count do
  local charges, hold, cost, requests, input, output, cached, its_counters, its_runs, its_slots, place
  charges, hold, cost, requests, input, output, cached, its_counters, its_runs, its_slots, at = read('<dddddddddd', plan, at)
  local attempt = ARGV[3 + entry]
  local release = call('HDEL', KEYS[2], attempt) == 1 and hold or 0
  for _ = 1, its_counters do
    place, at = read('<d', plan, at)
    local counter = counters[place]
    counter[2] = counter[2] - release
    if charges == 1 then
      counter.charged = true
      counter[1], counter[3], counter[4] = counter[1] + cost, counter[3] + requests, counter[4] + input
      counter[5], counter[6] = counter[5] + output, counter[6] + cached
    end
  end
  for _ = 1, its_runs do
    local generation, index, more_requests, more_tokens
    place, generation, index, more_requests, more_tokens, at = read('<ddddd', plan, at)
    local log = logs[place]
    if log == nil then
      local fine, opened = pcall(log_open, KEYS[3 + counter_count + place])
      log = fine and opened
      logs[place] = log
    end
    if log then
      pcall(log_amend, log, generation, index, more_requests, more_tokens)
    end
  end
  for _ = 1, its_slots do
    place, at = read('<d', plan, at)
    local members = leaving[place]
    if not members then
      leaving[place] = {attempt}
    else
      members[#members + 1] = attempt
    end
  end
end
for i = 1, counter_count do
  local key, counter = KEYS[3 + i], counters[i]
  local packed = pack(COUNTER, counter[1], counter[2], counter[3], counter[4], counter[5], counter[6])
  local flags = counter.charged and not counter.flagged
  if counter.expires then
    counter_make(key, flags and packed .. sync or packed, counter.expires)
  elseif flags then
    call('SET', key, packed .. sync, 'KEEPTTL')
  else
    call('SETRANGE', key, '0', packed)
  end
  if flags then
    call('HSET', KEYS[3], string.sub(key, prefix + 1), sync)
  end
end
call('HSET', KEYS[1], producer, ARGV[3])

-- The money is right by now. A log or slot set that is none of ours stays as it is: the next admission tells.
for i = 1, log_count do
  if logs[i] then
    log_close(logs[i])
  end
end
for i = 1, slot_count do
  if leaving[i] then
    pcall(call, 'ZREM', KEYS[3 + counter_count + log_count + i], unpack(leaving[i]))
  end
end
return {0, last}

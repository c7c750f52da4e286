-- Apply one numbered entry of the kind *usage*, if it is the producer's next: charge what was used without a hold, once
-- for each idempotency key. The twin of Tree.apply and Tree._use in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 changed:{root}  3 unsaved:{root}  4 used:{root}:<digest>  then one per counter
-- ARGV  1 doubles: now (µs, 0: TIME), number, cost (nano-dollars), requests, how long a key is remembered (µs), whether
--           a caller was told that the key stands for this amount (1, or 0), number of counters, of origins; then per
--           counter: end of its period, its expiry (µs, 0: never); per origin: the number that the entry had
--       2 producer  3 digest of the idempotency key  4 number  5 prefix of counter keys  then the producer of each origin;
--       last the server's life that the caller is connected to
-- Reply as apply.lua, 5 too (counter 0: one that the charge of another entry names). A key that is known by another entry
--       charges nothing: the caller looks it up. Nor does an entry that was counted under the number it had: its key may be
--       forgotten by now. Its counters are flagged all the same, because what the database has of them may be from a
--       memory that was lost.
-- A key's text is `amount until producer:number`, and, if it was charged while the tree waited for producers (gate.lua) by
-- an entry of which no caller was told, a space and the names of the counters: an entry of which one was told replaces that
-- while the tree still waits, if the amounts differ.
-- include: clock.lua
-- include: counter.lua
-- include: holds.lua
-- include: marks.lua
local producer, prefix = ARGV[2], ARGV[5]
local given, entry, cost, requests, keep, told, counter_count, origin_count, at = read('<dddddddd', ARGV[1])
-- include: numbered.lua

local gate = call('HMGET', KEYS[1], '.server', '.gate')
local now, counters, expiries = clock(given), {}, {}
for i = 1, counter_count do
  local ends
  ends, expiries[i], at = read('<dd', ARGV[1], at)
  counters[i] = call('GET', KEYS[4 + i])
  if counters[i] and #counters[i] < COUNTER_BYTES then
    return {5, mark, i}
  end
  if not counters[i] and ends > 0 and ends <= now then
    return {3, mark, i}
  end
end
local counted = false
for i = 1, origin_count do
  local number
  number, at = read('<d', ARGV[1], at)
  if number <= included(tonumber(call('HGET', KEYS[1], ARGV[5 + i]) or 0)) then
    counted = true
  end
end
local open = gate[1] == ARGV[#ARGV] and now >= tonumber(gate[2] or 0)
local by = producer .. ':' .. ARGV[4]
local amount, till, author, names = string.match(call('GET', KEYS[4]) or '0 0 ', '^(%d+) (%d+) (%S*) ?(.*)$')
local known, taken = tonumber(till) > now, ''
if known and told == 1 and names ~= '' and not (open or counted or author == by or tonumber(amount) == cost) then
  local other, number = string.match(author, '^(.*):(%d+)$')
  if tonumber(number) <= included(tonumber(call('HGET', KEYS[1], other) or 0)) then
    taken = names -- else it is only named by the database, and yet to come
  end
  if not all_counters(prefix, taken) then
    return {5, mark, 0}
  end
  known = false
end

-- Nothing below can fail: validate first, write last. The removal of a field that nobody has checks a type; and as a
-- write that needs no memory, it makes Redis let a script write on though its memory is full.
call('HDEL', KEYS[2], '')
call('HDEL', KEYS[3], '')
each_name(taken, function(name)
  local raw = call('GET', prefix .. name)
  if raw then
    local spent, held, had_requests = read('<ddd', raw)
    local packed = pack('<ddd', spent - amount, held, had_requests - 1)
    call('SET', prefix .. name, packed .. string.sub(raw, #packed + 1, COUNTER_BYTES) .. sync, 'KEEPTTL')
    call('HSET', KEYS[2], name, sync)
  end
end)
if not counted and not known then
  local text = string.format('%.0f %.0f %s', cost, now + keep, by)
  author = by
  if told == 0 and not open then
    for i = 1, counter_count do
      text = text .. (i == 1 and ' ' or ',') .. string.sub(KEYS[4 + i], #prefix + 1)
    end
  end
  call('SET', KEYS[4], text, 'PXAT', math.ceil((now + keep) / 1000))
  call('HSET', KEYS[3], ARGV[3], text)
end
if counted or author ~= by then
  cost, requests = 0, 0
end
for i = 1, counter_count do
  local key = KEYS[4 + i]
  if taken ~= '' then
    counters[i] = call('GET', key)
  end
  local raw = counters[i] or string.rep('\0', COUNTER_BYTES)
  local spent, held, had_requests = read('<ddd', raw)
  local packed = pack('<ddd', spent + cost, held, had_requests + requests)
  packed = packed .. string.sub(raw, #packed + 1, COUNTER_BYTES) .. sync
  if counters[i] then
    call('SET', key, packed, 'KEEPTTL')
  else
    counter_make(key, packed, expiries[i])
  end
  call('HSET', KEYS[2], string.sub(key, #prefix + 1), sync)
end
call('HSET', KEYS[1], producer, ARGV[4])
return {0, entry, 0}

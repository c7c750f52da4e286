-- Apply one numbered entry of the kind *usage*, if it is the producer's next: charge what was used without a hold, once
-- for each idempotency key. The twin of Tree.apply and Tree._use in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 changed:{root}  3 unsaved:{root}  4 used:{root}:<digest>  then one per counter
-- ARGV  1 doubles: now (µs, 0: TIME), number, cost (nano-dollars), requests, how long a key is remembered (µs), length of
--           the prefix of counter keys, number of counters, of origins; then per counter: end of its period, its expiry
--           (µs, 0: never); per origin: the number that the entry had
--       2 producer  3 digest of the idempotency key  4 number  then the producer of each origin
-- Reply as apply.lua, 5 too. A key that is known by another entry charges nothing: the caller looks it up. Nor does an entry
--       that was counted under the number it had: its key may be forgotten by now. Its counters are flagged all the same,
--       because what the database has of them may be from a memory that was lost.
-- include: clock.lua
-- include: counter.lua
-- include: marks.lua
local producer = ARGV[2]
local given, entry, cost, requests, keep, prefix, counter_count, origin_count, at = read('<dddddddd', ARGV[1])
-- include: numbered.lua

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
  if number <= included(tonumber(call('HGET', KEYS[1], ARGV[4 + i]) or 0)) then
    counted = true
  end
end

-- Nothing below can fail: validate first, write last. The removal of a field that nobody has checks a type; and as a
-- write that needs no memory, it makes Redis let a script write on though its memory is full.
call('HDEL', KEYS[2], '')
call('HDEL', KEYS[3], '')
local by = producer .. ':' .. ARGV[4]
local known = call('GET', KEYS[4])
if not counted and (not known or tonumber(string.match(known, ' (%d+) ')) <= now) then
  known = string.format('%.0f %.0f %s', cost, now + keep, by)
  call('SET', KEYS[4], known, 'PXAT', math.ceil((now + keep) / 1000))
  call('HSET', KEYS[3], ARGV[3], known)
end
if counted or string.match(known, ' ([^ ]+)$') ~= by then
  cost, requests = 0, 0
end
for i = 1, counter_count do
  local key, raw = KEYS[4 + i], counters[i] or string.rep('\0', COUNTER_BYTES)
  local spent, held, had_requests = read('<ddd', raw)
  local packed = pack('<ddd', spent + cost, held, had_requests + requests)
  packed = packed .. string.sub(raw, #packed + 1, COUNTER_BYTES) .. sync
  if counters[i] then
    call('SET', key, packed, 'KEEPTTL')
  else
    counter_make(key, packed, expiries[i])
  end
  call('HSET', KEYS[2], string.sub(key, prefix + 1), sync)
end
call('HSET', KEYS[1], producer, ARGV[4])
return {0, entry, 0}

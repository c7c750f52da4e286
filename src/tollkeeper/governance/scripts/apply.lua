-- Apply one numbered entry, if it is the producer's next: the twin of Tree.apply in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  then one per counter, one per run, one per bucket, one per
--       slot set
-- ARGV  1 doubles: now (µs, 0: TIME), number, charges (1, or 0 for a void), hold, cost (nano-dollars), requests, input,
--           output, cached (tokens), number of counters, runs, buckets, slot sets, length of the prefix of counter keys;
--           then per counter: end of its period, its expiry (µs, 0: never);
--           per run: generation, index, requests and tokens to add;
--           per bucket: rate (a minute), burst, generation, last refill (µs), level and tokens returned when tokens were
--           taken (admit.lua), tokens to give back
--       2 producer  3 attempt  4 number
-- Reply {status, mark, counter}: 0 ok (now or before), 1 gap, 2 cold, 3 absent: `counter` (from 1) belongs to a period
--       that has ended and is not here; it must be restored from the database first. 5 damaged: `counter` is no counter.
--       A key of another type is an error of Redis. Either way nothing was changed.
-- include: clock.lua
-- include: window.lua
-- include: correct.lua
-- include: counter.lua
local plan, producer, attempt = ARGV[1], ARGV[2], ARGV[3]
local given, entry, charges, hold, cost, requests, input, output, cached, counter_count, run_count, bucket_count,
  slot_count, prefix, at = read('<dddddddddddddd', plan)
-- include: numbered.lua

local counters, expiries, flagging = {}, nil, false
for i = 1, counter_count do
  local raw = call('GET', KEYS[3 + i])
  counters[i] = raw
  if raw then
    if #raw < COUNTER_BYTES then
      return {5, mark, i}
    end
    flagging = flagging or string.sub(raw, COUNTER_BYTES + 1) ~= sync
  else
    flagging = true
    local ends, expires = read('<dd', plan, at)
    if ends > 0 and ends <= clock(given) then
      return {3, mark, i}
    end
    expiries = expiries or {}
    expiries[i] = expires
  end
  at = at + 16
end

-- Validate first, write last: a type is checked by a read, or by the removal of a field that nobody has. A write that
-- needs no memory comes first, and after it Redis lets a script write on though its memory is full.
flagging = flagging and charges == 1
if flagging then
  call('HDEL', KEYS[3], '')
end
local release = call('HDEL', KEYS[2], attempt) == 1 and hold or 0
for i = 1, counter_count do
  local key, raw = KEYS[3 + i], counters[i]
  local spent, held, had_requests, had_input, had_output, had_cached = 0, 0, 0, 0, 0, 0
  if raw then
    spent, held, had_requests, had_input, had_output, had_cached = read(COUNTER, raw)
  end
  if charges == 1 then
    spent, had_requests = spent + cost, had_requests + requests
    had_input, had_output, had_cached = had_input + input, had_output + output, had_cached + cached
  end
  local packed = pack(COUNTER, spent, held - release, had_requests, had_input, had_output, had_cached)
  if not raw then
    counter_make(key, flagging and packed .. sync or packed, expiries[i])
  elseif flagging then
    call('SET', key, packed .. sync, 'KEEPTTL')
  else
    call('SETRANGE', key, '0', packed)
  end
  if flagging then
    call('HSET', KEYS[3], string.sub(key, prefix + 1), sync)
  end
end
call('HSET', KEYS[1], producer, ARGV[4])

-- The money is right by now. A log, bucket or slot set that is none of ours stays as it is: the next admission tells.
for i = 1, run_count do
  local generation, index, more_requests, more_tokens
  generation, index, more_requests, more_tokens, at = read('<dddd', plan, at)
  pcall(log_correct, KEYS[3 + counter_count + i], generation, index, more_requests, more_tokens)
end
if bucket_count > 0 then -- what is made only where it is used costs the others nothing
-- include: refill.lua
  for i = 1, bucket_count do
    local rate, burst, generation, last, level, returned, more
    rate, burst, generation, last, level, returned, more, at = read('<ddddddd', plan, at)
    pcall(function(key, now)
      bucket_correct(bucket_open(key, rate, burst, now), generation, last, level, returned, more, now)
    end, KEYS[3 + counter_count + run_count + i], clock(given))
  end
end
for i = 1, slot_count do
  pcall(call, 'ZREM', KEYS[3 + counter_count + run_count + bucket_count + i], attempt)
end
return {0, entry, 0}

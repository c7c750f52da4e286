-- Decide over all limits and budgets of one request at once: the twin of Tree.admit in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}  then one per log, one per bucket, one per slot set, one per counter
-- ARGV  1 doubles: now (µs, 0: TIME), valid_from, valid_until (µs), requests, tokens, hold (nano-dollars), lease (µs),
--           number of logs, buckets, slot sets, counters; then
--           per log: window (µs), tick (µs), request limit, token limit, both in shadow (-1: none)
--           per bucket: unit (1|2), rate (a minute), burst, in shadow (0|1)
--           per slot set: limit, in shadow (0|1)
--           per counter: budget (nano-dollars, -1: none), end of its period, its expiry (µs, 0: never)
--       2 attempt ('' asks for the state only)
--       3 the hold without its runs: amount LF producer LF counter names LF slot names LF (holds.lua)
--       4 producer
--       5 the server's life that the caller is connected to ('': there is no budget, and no need to wait for anybody)
-- Reply {status, now, …}. status 1 admitted, 0 refused, -1 late, -2 cold, -3 recovering: another producer has to send
--       again first, or nobody has asked since the server's life began (gate.lua), -4 the producer is buried (marks.lua).
--       A refusal goes on with
--       {check, unit, used, asked, wait (µs, -1: never), never (0|1)}: check counts logs, buckets, slots, counters from 1; unit 1
--       requests, 2 tokens. Then, refused or admitted, per log {generation, run index (-1: none), requests, tokens,
--       µs until empty}, per bucket {generation (0: nothing taken), last refill (µs), level, tokens returned, µs until full}
--       as domain/bucket.py tells, per slot set {in flight}, per counter {spent, held}. Last, if admitted now, {check, unit} for each
--       limit in shadow that would have refused.
--
-- It is one straight run of blocks: functions that share variables take Lua longer to make than Redis to obey a command.
-- include: clock.lua
-- include: window.lua
-- include: sliding.lua
-- include: counter.lua
-- include: refill.lua
-- How a limit refuses: for a known time, until a slot is free, until its budget is raised, for ever.
local WAIT, BUSY, SPENT, NEVER = 0, 1, 2, 3
local BURIED = 4503599627370496
local plan, attempt = ARGV[1], ARGV[2]
local given, valid_from, valid_until, requests, tokens, hold, lease, log_count, bucket_count, slot_count, counter_count, at =
  read('<ddddddddddd', plan)
local now = clock(given)
if now < valid_from or now >= valid_until then
  return {-1, now}
end
local tree = call('HMGET', KEYS[1], 'run', '.server', '.gate', ARGV[4])
if not tree[1] then
  return {-2, now}
end
if attempt ~= '' and tree[4] and tonumber(tree[4]) >= BURIED then
  return {-4, now}
end
local server = ARGV[5]
if server ~= '' and (server ~= tree[2] or tree[3] and now < tonumber(tree[3])) then
  return {-3, now}
end

local bucket_base = 2 + log_count
local slot_base = bucket_base + bucket_count
local counter_base = slot_base + slot_count
local logs, buckets, in_flight, costs, helds = {}, {}, {}, {}, {}
local expiries -- of counters that are not there
local lapsed = false -- whether there are leases that have ended: a refusal leaves them
local refusals, shadowed -- lists of {severity, wait, check, unit, used, asked} and of check, unit; nil: none

for i = 1, log_count do
  local window, tick, limit_requests, limit_tokens, shadow_requests, shadow_tokens
  window, tick, limit_requests, limit_tokens, shadow_requests, shadow_tokens, at = read('<dddddd', plan, at)
  local log = log_open(KEYS[2 + i], window, tick, now)
  logs[i] = log
  for u = 1, 2 do
    local used, asked, limit, shadow = log[REQUESTS], requests, limit_requests, shadow_requests
    if u == 2 then
      used, asked, limit, shadow = log[TOKENS], tokens, limit_tokens, shadow_tokens
    end
    if limit >= 0 and used + asked > limit then
      refusals = refusals or {}
      if asked > limit then
        refusals[#refusals + 1] = {NEVER, 0, i, u, used, asked}
      else
        refusals[#refusals + 1] = {WAIT, log_wait(log, now, u, used + asked - limit), i, u, used, asked}
      end
    end
    if shadow >= 0 and used + asked > shadow then
      shadowed = shadowed or {}
      shadowed[#shadowed + 1], shadowed[#shadowed + 2] = i, u
    end
  end
end
for i = 1, bucket_count do
  local u, rate, burst, shadow
  u, rate, burst, shadow, at = read('<dddd', plan, at)
  local bucket, asked = bucket_open(KEYS[bucket_base + i], rate, burst, now), u == 2 and tokens or requests
  buckets[i] = bucket
  bucket.asked, bucket.generation_taken = asked, 0
  if asked * PER_TOKEN > bucket.level then
    if shadow == 0 then
      local used = burst - math.floor(bucket.level / PER_TOKEN)
      local severity = asked > burst and NEVER or WAIT
      local wait = severity == WAIT and bucket_until(bucket, asked * PER_TOKEN, now) or 0
      refusals = refusals or {}
      refusals[#refusals + 1] = {severity, wait, log_count + i, u, used, asked}
    else
      bucket.asked = nil
      shadowed = shadowed or {}
      shadowed[#shadowed + 1], shadowed[#shadowed + 2] = log_count + i, u
    end
  end
end
for i = 1, slot_count do
  local limit, shadow
  limit, shadow, at = read('<dd', plan, at)
  local ended = call('ZCOUNT', KEYS[slot_base + i], '-inf', now)
  local used = call('ZCARD', KEYS[slot_base + i]) - ended
  lapsed = lapsed or ended > 0
  in_flight[i] = used
  if used >= limit then
    if shadow == 0 then
      refusals = refusals or {}
      refusals[#refusals + 1] = {BUSY, 0, log_count + bucket_count + i, 0, used, 1}
    else
      shadowed = shadowed or {}
      shadowed[#shadowed + 1], shadowed[#shadowed + 2] = log_count + bucket_count + i, 0
    end
  end
end
for i = 1, counter_count do
  local budget, ends, expires
  budget, ends, expires, at = read('<ddd', plan, at)
  local raw, cost, held = call('GETRANGE', KEYS[counter_base + i], '0', '15'), 0, 0
  if raw == '' then
    expiries = expiries or {}
    expiries[i] = expires
  else
    cost, held = read('<dd', raw)
  end
  costs[i], helds[i] = cost, held
  if budget >= 0 and cost + held + hold > budget then
    local severity = hold > budget and NEVER or ends == 0 and SPENT or WAIT
    refusals = refusals or {}
    refusals[#refusals + 1] =
      {severity, severity == WAIT and ends - now or 0, counter_base - 2 + i, 0, cost + held, hold}
  end
end

-- The refusal that counts: the most severe, then the one with the longest wait; the first of equals.
local refusal
if refusals then
  for _, other in ipairs(refusals) do
    if not refusal or other[1] > refusal[1] or (other[1] == refusal[1] and other[2] > refusal[2]) then
      refusal = other
    end
  end
end

-- An attempt that was admitted before has its hold: the first answer once more, whatever the limits say now. To write the
-- hold is also how it is found out whether it was there. Nothing below can fail: validate first, write last.
local earlier, admitted
if attempt ~= '' then
  if refusal then
    earlier = call('HGET', KEYS[2], attempt)
  else
    local held = ARGV[3]
    for i = 1, log_count do
      held = held .. pack('<dd', logs[i][GENERATION], logs[i][INDEX])
    end
    for i = 1, bucket_count do
      local bucket = buckets[i]
      local generation, left = 0, bucket.level
      if bucket.asked then
        generation, left = bucket.generation, left - bucket.asked * PER_TOKEN
      end
      held = held .. pack('<dddd', generation, bucket.last, left, bucket.returned)
    end
    admitted = call('HSETNX', KEYS[2], attempt, held) == 1
    earlier = not admitted and call('HGET', KEYS[2], attempt)
  end
end
local runs = earlier and string.match(earlier, '^[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n(.*)$') or ''

for i = 1, log_count do
  local log = logs[i]
  if admitted then
    log_add(log, now, requests, tokens)
  elseif log[WRITES] > NOTHING then
    log_write(log, now, '')
  end
end
if admitted then
  for i = 1, bucket_count do
    local bucket = buckets[i]
    if bucket.asked then
      if bucket.asked > 0 then
        bucket_add(bucket, -bucket.asked, now)
      end
      bucket.generation_taken = bucket.generation
    end
  end
  for i = 1, slot_count do
    if lapsed then
      call('ZREMRANGEBYSCORE', KEYS[slot_base + i], '-inf', now)
    end
    call('ZADD', KEYS[slot_base + i], now + lease, attempt)
    call('PEXPIRE', KEYS[slot_base + i], math.ceil(lease / 1000))
    in_flight[i] = in_flight[i] + 1
  end
  for i = 1, counter_count do
    local key = KEYS[counter_base + i]
    helds[i] = helds[i] + hold
    if expiries and expiries[i] then
      counter_make(key, pack(COUNTER, 0, hold, 0, 0, 0, 0), expiries[i])
    else
      call('SETRANGE', key, '8', pack('<d', helds[i]))
    end
  end
end

local known = #runs == log_count * 16 + bucket_count * 32 and runs ~= ''
-- The nils make room at once for what is appended.
local answer, filled = {1, now, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil}, 2
if refusal and attempt ~= '' and not earlier then
  local wait, never = refusal[1] == WAIT and refusal[2] or -1, refusal[1] == NEVER and 1 or 0
  answer, filled = {0, now, refusal[3], refusal[4], refusal[5], refusal[6], wait, never}, 8
end
for i = 1, log_count do
  local log = logs[i]
  local generation, index = log[EXPIRES] == 0 and 0 or log[GENERATION], admitted and log[INDEX] or -1
  if known then
    generation, index = read('<dd', runs, i * 16 - 15)
  end
  answer[filled + 1], answer[filled + 2], answer[filled + 3], answer[filled + 4] = generation, index, log[REQUESTS], log[TOKENS]
  answer[filled + 5] = log[TAIL] > log[HEAD] and log[LAST] + log[WINDOW] - now or 0
  filled = filled + 5
end
for i = 1, bucket_count do
  local bucket = buckets[i]
  local generation, last, level, returned = bucket.generation_taken, bucket.last, bucket.level, bucket.returned
  if known then
    generation, last, level, returned = read('<dddd', runs, log_count * 16 + i * 32 - 31)
  end
  answer[filled + 1], answer[filled + 2], answer[filled + 3], answer[filled + 4] = generation, last, level, returned
  answer[filled + 5] = bucket_until(bucket, bucket.full, now)
  filled = filled + 5
end
for i = 1, slot_count do
  answer[filled + i] = in_flight[i]
end
filled = filled + slot_count
for i = 1, counter_count do
  answer[filled + 1], answer[filled + 2] = costs[i], helds[i]
  filled = filled + 2
end
if admitted and shadowed then
  for i = 1, #shadowed do
    answer[filled + i] = shadowed[i]
  end
end
return answer

-- Decide over all limits and budgets of one request at once: the twin of Tree.admit in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}  then one per log, one per slot set, one per counter
-- ARGV  1 doubles: now (µs, 0: TIME), valid_from, valid_until (µs), requests, tokens, hold (nano-dollars), lease (µs)
--       2 doubles: number of logs, slot sets, counters; then
--           per log: window (µs), tick (µs), request limit, token limit, both in shadow (-1: none)
--           per slot set: limit, in shadow (0|1)
--           per counter: budget (nano-dollars, -1: none), end of its period, its expiry (µs, 0: never)
--       3 attempt ('' asks for the state only)
--       4 the hold without its runs: amount LF producer LF counter names LF slot names LF (holds.lua)
-- Reply {status, now, …}. status 1 admitted, 0 refused, -1 late, -2 cold. A refusal goes on with
--       {check, unit, used, asked, wait (µs, -1: none), never (0|1)}: check counts logs, slots, counters from 1; unit 1
--       requests, 2 tokens. Then, refused or admitted, per log {generation, run index (-1: none), requests, tokens,
--       µs until empty}, per slot set {in flight}, per counter {spent, held}. Last, if admitted, {check, unit} for each
--       limit in shadow that would have refused.
-- include: clock.lua
-- include: window.lua
-- include: sliding.lua
-- include: counter.lua
local given, valid_from, valid_until, requests, tokens, hold, lease = struct.unpack('<ddddddd', ARGV[1])
local now = clock(given)
if now < valid_from or now >= valid_until then
  return {-1, now}
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {-2, now}
end

local plan, attempt = ARGV[2], ARGV[3]
local log_count, slot_count, counter_count, at = struct.unpack('<ddd', plan)
local logs, slots, counters = {}, {}, {}

for i = 1, log_count do
  local window, tick, limit_requests, limit_tokens, shadow_requests, shadow_tokens
  window, tick, limit_requests, limit_tokens, shadow_requests, shadow_tokens, at = struct.unpack('<dddddd', plan, at)
  local log = log_open(KEYS[2 + i], window, tick, now)
  log.limit_requests, log.limit_tokens = limit_requests, limit_tokens
  log.shadow_requests, log.shadow_tokens = shadow_requests, shadow_tokens
  log_advance(log, now)
  logs[i] = log
end
for i = 1, slot_count do
  local key, limit, shadow = KEYS[2 + log_count + i], nil, nil
  limit, shadow, at = struct.unpack('<dd', plan, at)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  slots[i] = {key = key, limit = limit, shadow = shadow == 1, used = redis.call('ZCARD', key)}
end
for i = 1, counter_count do
  local key = KEYS[2 + log_count + slot_count + i]
  local budget, ends, expires
  budget, ends, expires, at = struct.unpack('<ddd', plan, at)
  local raw = redis.call('GETRANGE', key, '0', '15')
  local cost, held = 0, 0
  if raw ~= '' then
    cost, held = struct.unpack('<dd', raw)
  end
  counters[i] = {key = key, budget = budget, ends = ends, expires = expires, raw = raw, cost = cost, held = held}
end

local function reply(answer, filled)
  for i = 1, log_count do
    local log = logs[i]
    answer[filled + 1] = log.run_generation or log.fresh and 0 or log.generation
    answer[filled + 2] = log.index or -1
    answer[filled + 3] = log.requests
    answer[filled + 4] = log.tokens
    answer[filled + 5] = log.tail > log.head and log.last + log.window - now or 0
    filled = filled + 5
  end
  for i = 1, slot_count do
    filled = filled + 1
    answer[filled] = slots[i].used
  end
  for i = 1, counter_count do
    answer[filled + 1] = counters[i].cost
    answer[filled + 2] = counters[i].held
    filled = filled + 2
  end
  return answer
end

local function save_logs()
  for i = 1, log_count do
    if logs[i].dirty then
      log_write(logs[i], now, '')
    end
  end
end

if attempt == '' then
  save_logs()
  return reply({1, now}, 2)
end

-- The first answer once more: the runs that hold this attempt's weight, and the state of now.
local function repeated()
  save_logs()
  local runs = string.match(redis.call('HGET', KEYS[2], attempt), '^[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n(.*)$')
  for i = 1, log_count do
    local log = logs[i]
    log.index = -1
    if i * 16 <= #runs then
      log.run_generation, log.index = struct.unpack('<dd', runs, i * 16 - 15)
    end
  end
  return reply({1, now}, 2)
end

-- The refusal with the longest wait: never (3), then no known time (budget 2, concurrency 1), then the latest; the first
-- of equals.
local worst, worst_wait, check, unit, worst_used, worst_asked = -1, 0, 0, 0, 0, 0
local function refuse(severity, wait, at_check, at_unit, used, asked)
  if severity > worst or (severity == worst and wait > worst_wait) then
    worst, worst_wait, check, unit, worst_used, worst_asked = severity, wait, at_check, at_unit, used, asked
  end
end

local function refuse_log(i, log, at_unit, limit, used, asked)
  if asked > limit then
    refuse(3, 0, i, at_unit, used, asked)
  else
    refuse(0, log_wait(log, now, at_unit, used + asked - limit), i, at_unit, used, asked)
  end
end

for i = 1, log_count do
  local log = logs[i]
  if log.limit_requests >= 0 and log.requests + requests > log.limit_requests then
    refuse_log(i, log, 1, log.limit_requests, log.requests, requests)
  end
  if log.limit_tokens >= 0 and log.tokens + tokens > log.limit_tokens then
    refuse_log(i, log, 2, log.limit_tokens, log.tokens, tokens)
  end
end
for i = 1, slot_count do
  if slots[i].used >= slots[i].limit and not slots[i].shadow then
    refuse(1, 0, log_count + i, 0, slots[i].used, 1)
  end
end
for i = 1, counter_count do
  local counter = counters[i]
  local used = counter.cost + counter.held
  if counter.budget >= 0 and used + hold > counter.budget then
    local place = log_count + slot_count + i
    if hold > counter.budget then
      refuse(3, 0, place, 0, used, hold)
    elseif counter.ends == 0 then
      refuse(2, 0, place, 0, used, hold)
    else
      refuse(0, counter.ends - now, place, 0, used, hold)
    end
  end
end
if worst >= 0 then
  if redis.call('HEXISTS', KEYS[2], attempt) == 1 then
    return repeated()
  end
  save_logs()
  local wait = worst == 0 and worst_wait or -1
  return reply({0, now, check, unit, worst_used, worst_asked, wait, worst == 3 and 1 or 0}, 8)
end

local shadowed = {}
local function shadow(place, at_unit)
  shadowed[#shadowed + 1] = place
  shadowed[#shadowed + 1] = at_unit
end

for i = 1, log_count do
  local log = logs[i]
  if log.shadow_requests >= 0 and log.requests + requests > log.shadow_requests then
    shadow(i, 1)
  end
  if log.shadow_tokens >= 0 and log.tokens + tokens > log.shadow_tokens then
    shadow(i, 2)
  end
end
for i = 1, slot_count do
  if slots[i].shadow and slots[i].used >= slots[i].limit then
    shadow(log_count + i, 0)
  end
end

-- Nothing below can fail: validate first, write last.
local held = ARGV[4]
for i = 1, log_count do
  local log = logs[i]
  log.index = log_next(log)
  held = held .. struct.pack('<dd', log.generation, log.index)
end
if redis.call('HSETNX', KEYS[2], attempt, held) == 0 then
  return repeated()
end
for i = 1, log_count do
  log_add(logs[i], now, requests, tokens)
  logs[i].fresh = false
end
for i = 1, slot_count do
  redis.call('ZADD', slots[i].key, now + lease, attempt)
  redis.call('PEXPIRE', slots[i].key, math.ceil(lease / 1000))
  slots[i].used = slots[i].used + 1
end
for i = 1, counter_count do
  local counter = counters[i]
  counter.held = counter.held + hold
  if counter.raw == '' then
    counter_make(counter.key, struct.pack(COUNTER, 0, hold, 0, 0, 0, 0), counter.expires)
  else
    redis.call('SETRANGE', counter.key, '8', struct.pack('<d', counter.held))
  end
end
local answer = reply({1, now}, 2)
for i = 1, #shadowed do
  answer[#answer + 1] = shadowed[i]
end
return answer

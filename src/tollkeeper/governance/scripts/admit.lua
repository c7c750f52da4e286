-- Decide over all limits and budgets of one request at once: the twin of Tree.admit in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}  then one per log, one per slot set, one per counter
-- ARGV  now (µs, 0: TIME), valid_from, valid_until (µs), attempt ('' asks for the state only), requests, tokens,
--       hold (nano-dollars), meta (what `close` needs: producer LF counter names LF slot names),
--       lease (µs), number of logs, slots, counters; then
--       per log: window (µs), tick (µs), request limit, token limit (-1: none)
--       per slot set: limit
--       per counter: budget (nano-dollars, -1: none), end of its period, its expiry (µs, 0: never)
-- Reply {status, now, …}. status 1 admitted, 0 refused, -1 late, -2 cold. A refusal goes on with
--       {check, unit, used, asked, wait (µs, -1: none), never (0|1)}: check counts logs, slots, counters from 1; unit 1
--       requests, 2 tokens. Then, refused or admitted, per log {generation, run index (-1: none), requests, tokens,
--       µs until empty}, per slot set {in flight}, per counter {spent, held}.
-- include: arguments.lua
-- include: window.lua
local now = time_us()
local valid_from, valid_until = number(), number()
if now < valid_from or now >= valid_until then
  return {-1, now}
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {-2, now}
end

local attempt, requests, tokens, hold, meta, lease = text(), number(), number(), number(), text(), number()
local log_count, slot_count, counter_count = number(), number(), number()
local logs, slots, counters = {}, {}, {}

for i = 1, log_count do
  local window, tick = number(), number()
  local log = log_open(KEYS[2 + i], window, now)
  log.tick, log.limit_requests, log.limit_tokens, log.index = tick, number(), number(), -1
  log_advance(log, now, tick)
  logs[i] = log
end
for i = 1, slot_count do
  local key = KEYS[2 + log_count + i]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  slots[i] = {key = key, limit = number(), used = redis.call('ZCARD', key)}
end
for i = 1, counter_count do
  local key = KEYS[2 + log_count + slot_count + i]
  local state = redis.call('HMGET', key, 'cost', 'held')
  counters[i] = {
    key = key, budget = number(), ends = number(), expires = number(),
    new = not state[1] and not state[2], cost = tonumber(state[1] or 0), held = tonumber(state[2] or 0),
  }
end

-- The refusal with the longest wait: never (3), then no known time (budget 2, concurrency 1), then the latest; the first
-- of equals.
local worst
local function refuse(severity, wait, check, unit, used, asked)
  if not worst or severity > worst.severity or (severity == worst.severity and wait > worst.wait) then
    worst = {severity = severity, wait = wait, check = check, unit = unit, used = used, asked = asked}
  end
end

local function judge_log(i, log, unit, limit, used, asked)
  if limit < 0 or used + asked <= limit then
    return
  end
  if asked > limit then
    refuse(3, 0, i, unit, used, asked)
  else
    refuse(0, log_wait(log, now, unit, used + asked - limit), i, unit, used, asked)
  end
end

local function reply(answer)
  for i = 1, log_count do
    local log = logs[i]
    local known = not log.fresh
    answer[#answer + 1] = known and log.generation or 0
    answer[#answer + 1] = log.index
    answer[#answer + 1] = log.requests
    answer[#answer + 1] = log.tokens
    answer[#answer + 1] = log.tail > log.head and log.last + log.window - now or 0
  end
  for i = 1, slot_count do
    answer[#answer + 1] = slots[i].used
  end
  for i = 1, counter_count do
    answer[#answer + 1] = counters[i].cost
    answer[#answer + 1] = counters[i].held
  end
  return answer
end

local function save_logs()
  for i = 1, log_count do
    if logs[i].dirty then
      log_write(logs[i], now)
    end
  end
end

if attempt == '' then
  save_logs()
  return reply({1, now})
end
local earlier = redis.call('HGET', KEYS[2], attempt)
if earlier then
  save_logs()
  local i = 0
  for index in string.gmatch(string.match(earlier, '\n([^\n]*)$'), ':(%d+)') do
    i = i + 1
    if logs[i] then
      logs[i].index = tonumber(index)
    end
  end
  return reply({1, now})
end

for i = 1, log_count do
  local log = logs[i]
  judge_log(i, log, 1, log.limit_requests, log.requests, requests)
  judge_log(i, log, 2, log.limit_tokens, log.tokens, tokens)
end
for i = 1, slot_count do
  if slots[i].used >= slots[i].limit then
    refuse(1, 0, log_count + i, 0, slots[i].used, 1)
  end
end
for i = 1, counter_count do
  local counter = counters[i]
  local used = counter.cost + counter.held
  if counter.budget >= 0 and used + hold > counter.budget then
    local check = log_count + slot_count + i
    if hold > counter.budget then
      refuse(3, 0, check, 0, used, hold)
    elseif counter.ends == 0 then
      refuse(2, 0, check, 0, used, hold)
    else
      refuse(0, counter.ends - now, check, 0, used, hold)
    end
  end
end
if worst then
  save_logs()
  local wait = worst.severity == 0 and worst.wait or -1
  return reply({0, now, worst.check, worst.unit, worst.used, worst.asked, wait, worst.severity == 3 and 1 or 0})
end

-- Nothing below can fail: validate first, write last.
local runs = {}
for i = 1, log_count do
  local log = logs[i]
  log.index = log_add(log, now, log.tick, requests, tokens)
  log.fresh = false
  runs[i] = string.format('%.0f:%.0f', log.generation, log.index)
end
for i = 1, slot_count do
  redis.call('ZADD', slots[i].key, now + lease, attempt)
  redis.call('PEXPIRE', slots[i].key, math.ceil(lease / 1000))
  slots[i].used = slots[i].used + 1
end
for i = 1, counter_count do
  local counter = counters[i]
  counter.held = redis.call('HINCRBY', counter.key, 'held', string.format('%.0f', hold))
  if counter.new and counter.expires > 0 then
    redis.call('PEXPIREAT', counter.key, math.ceil(counter.expires / 1000))
  end
end
redis.call('HSET', KEYS[2], attempt, string.format('%.0f', hold) .. '\n' .. meta .. '\n' .. table.concat(runs, ','))
return reply({1, now})

-- Apply one numbered entry, if it is the producer's next: the twin of Tree.apply in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  then one per counter, one per run, one per slot set
-- ARGV  now (µs, 0: TIME), producer, number, attempt, charges (1, or 0 for a void), cost (nano-dollars), requests,
--       input, output, cached (tokens), number of counters, runs, slots; then
--       per counter: name, end of its period, its expiry (µs, 0: never)
--       per run: generation, index, requests and tokens to add
-- Reply {status, mark, counter}: 0 ok (now or before), 1 gap, 2 cold, 3 absent: `counter` (from 1) belongs to a period
--       that has ended and is not here; it must be restored from the database first.
-- include: arguments.lua
-- include: window.lua
local now, producer, entry, attempt, charges = time_us(), text(), number(), text(), number()
local cost, requests, input, output, cached = text(), text(), text(), text(), text()
local counter_count, run_count, slot_count = number(), number(), number()

local tree = redis.call('HMGET', KEYS[1], 'run', producer)
if not tree[1] then
  return {2, 0, 0}
end
local mark = tonumber(tree[2] or 0)
if entry <= mark then
  return {0, mark, 0}
end
if entry ~= mark + 1 then
  return {1, mark, 0}
end
local counters = {}
for i = 1, counter_count do
  local counter = {key = KEYS[3 + i], name = text(), ends = number(), expires = number()}
  counter.new = redis.call('EXISTS', counter.key) == 0
  if counter.new and counter.ends > 0 and counter.ends <= now then
    return {3, mark, i}
  end
  counters[i] = counter
end

-- Nothing below can fail: validate first, write last.
local held = redis.call('HGET', KEYS[2], attempt)
local release
if held then
  redis.call('HDEL', KEYS[2], attempt)
  release = string.format('%.0f', 0 - string.match(held, '^%d+'))
end
local version = producer .. ':' .. string.format('%.0f', entry)
for i = 1, counter_count do
  local counter = counters[i]
  if release then
    redis.call('HINCRBY', counter.key, 'held', release)
  end
  if charges == 1 then
    redis.call('HINCRBY', counter.key, 'cost', cost)
    redis.call('HINCRBY', counter.key, 'requests', requests)
    redis.call('HINCRBY', counter.key, 'input', input)
    redis.call('HINCRBY', counter.key, 'output', output)
    redis.call('HINCRBY', counter.key, 'cached', cached)
    redis.call('HSET', KEYS[3], counter.name, version)
  end
  if counter.new and counter.expires > 0 then
    redis.call('PEXPIREAT', counter.key, math.ceil(counter.expires / 1000))
  end
end
for i = 1, run_count do
  log_correct(KEYS[3 + counter_count + i], number(), number(), number(), number())
end
for i = 1, slot_count do
  redis.call('ZREM', KEYS[3 + counter_count + run_count + i], attempt)
end
redis.call('HSET', KEYS[1], producer, string.format('%.0f', entry))
return {0, entry, 0}

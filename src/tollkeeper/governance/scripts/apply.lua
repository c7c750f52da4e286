-- Apply one numbered entry, if it is the producer's next: the twin of Tree.apply in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  then one per counter, one per run, one per slot set
-- ARGV  1 doubles: now (µs, 0: TIME), number, charges (1, or 0 for a void), number of counters, runs, slot sets, length of
--           the prefix of counter keys; then per counter: end of its period, its expiry (µs, 0: never);
--           per run: generation, index, requests and tokens to add
--       2 producer  3 attempt  4 cost (nano-dollars)  5 requests  6 input  7 output  8 cached (tokens)
-- Reply {status, mark, counter}: 0 ok (now or before), 1 gap, 2 cold, 3 absent: `counter` (from 1) belongs to a period
--       that has ended and is not here; it must be restored from the database first.
-- include: clock.lua
-- include: window.lua
-- include: correct.lua
local plan, producer, attempt, cached = ARGV[1], ARGV[2], ARGV[3], ARGV[8]
local given, entry, charges, counter_count, run_count, slot_count, prefix, at = struct.unpack('<ddddddd', plan)

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
local fresh
for i = 1, counter_count do
  local ends, expires
  ends, expires, at = struct.unpack('<dd', plan, at)
  if redis.call('EXISTS', KEYS[3 + i]) == 0 then
    if ends > 0 and ends <= clock(given) then
      return {3, mark, i}
    end
    fresh = fresh or {}
    fresh[i] = expires
  end
end

-- Nothing below can fail: validate first, write last.
local number = string.format('%.0f', entry)
local held, release = redis.call('HGET', KEYS[2], attempt), nil
if held then
  redis.call('HDEL', KEYS[2], attempt)
  release = string.format('%.0f', 0 - string.match(held, '^%d+'))
end
local flags = {'HSET', KEYS[3]}
for i = 1, counter_count do
  local key = KEYS[3 + i]
  if release then
    redis.call('HINCRBY', key, 'held', release)
  end
  if charges == 1 then
    redis.call('HINCRBY', key, 'cost', ARGV[4])
    redis.call('HINCRBY', key, 'requests', ARGV[5])
    redis.call('HINCRBY', key, 'input', ARGV[6])
    redis.call('HINCRBY', key, 'output', ARGV[7])
    if cached ~= '0' then
      redis.call('HINCRBY', key, 'cached', cached)
    end
    flags[1 + 2 * i] = string.sub(key, prefix + 1)
    flags[2 + 2 * i] = producer .. ':' .. number
  end
  if fresh and fresh[i] and fresh[i] > 0 then
    redis.call('PEXPIREAT', key, math.ceil(fresh[i] / 1000))
  end
end
if charges == 1 and counter_count > 0 then
  redis.call(unpack(flags))
end
for i = 1, run_count do
  local generation, index, requests, tokens
  generation, index, requests, tokens, at = struct.unpack('<dddd', plan, at)
  log_correct(KEYS[3 + counter_count + i], generation, index, requests, tokens)
end
for i = 1, slot_count do
  redis.call('ZREM', KEYS[3 + counter_count + run_count + i], attempt)
end
redis.call('HSET', KEYS[1], producer, number)
return {0, entry, 0}

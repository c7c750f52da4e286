-- Add by force what an instance admitted alone while it could not ask: the twin of Tree.push.
--
-- KEYS  1 pushed:{root}  then one per log
-- ARGV  1 doubles: now (µs, 0: TIME); then per log: window, tick (µs), and as they were last seen its generation, the
--           stamp of its newest run (µs), its requests and tokens; number of runs; per run: stamp (µs), requests, tokens
--       2 id of this push
--       3 how long ids are remembered (ms)
-- Reply 1 added, 0 this push was here before. A log of another generation than the one last seen has forgotten what was
-- seen: as much as it lacks of that is added first. Runs that have left the window are left out, stamps are never later
-- than now.
-- include: clock.lua
-- include: window.lua
-- include: sliding.lua
local numbers = ARGV[1]
local given, at = struct.unpack('<d', numbers)
local now = clock(given)
if redis.call('HSETNX', KEYS[1], ARGV[2], '') == 0 then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])

local function force(log, stamp, requests, tokens)
  if stamp + log.window > now and requests + tokens > 0 then
    local at = math.min(stamp, now)
    local over = math.fmod(at, log.tick)
    at = over == 0 and at or at - over + log.tick
    log.stamp = log.tail > log.head and math.max(at, log.last) or at
    log_add(log, now, requests, tokens)
    log.fresh, log.cut, log.dirty = false, false, false
  end
end

for i = 2, #KEYS do
  local window, tick, generation, stamp, requests, tokens, runs
  window, tick, generation, stamp, requests, tokens, runs, at = struct.unpack('<ddddddd', numbers, at)
  local log = log_open(KEYS[i], window, tick, now)
  log_advance(log, now)
  if log.generation ~= generation then
    force(log, stamp, math.max(0, requests - log.requests), math.max(0, tokens - log.tokens))
  end
  for _ = 1, runs do
    stamp, requests, tokens, at = struct.unpack('<ddd', numbers, at)
    force(log, stamp, requests, tokens)
  end
  if log.dirty then
    log_write(log, now, '')
  end
end
return 1

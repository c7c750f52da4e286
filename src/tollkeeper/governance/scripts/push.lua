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
local PUSHED_BYTES = 24
local numbers = ARGV[1]
local given, at = read('<d', numbers)
local now = clock(given)
if call('HSETNX', KEYS[1], ARGV[2], '') == 0 then
  return 0
end
call('PEXPIRE', KEYS[1], ARGV[3])

local function force(log, tick, stamp, requests, tokens)
  if stamp + log[WINDOW] > now and requests + tokens > 0 then
    local at = math.min(stamp, now)
    local over = at % tick
    at = over == 0 and at or at - over + tick
    local some = log[TAIL] > log[HEAD]
    log[STAMP] = some and math.max(at, log[LAST]) or at
    log[INDEX] = some and log[LAST] == log[STAMP] and log[HEAD] or log[TAIL] -- any below the tail: the newest run gets it
    log_add(log, now, requests, tokens)
  end
end

for i = 2, #KEYS do
  local window, tick, generation, stamp, requests, tokens, runs
  window, tick, generation, stamp, requests, tokens, runs, at = read('<ddddddd', numbers, at)
  local from = at
  at = at + runs * PUSHED_BYTES
  -- A log that is none of ours stays as it is, and holds up no other: the next admission tells.
  pcall(function()
    local log = log_open(KEYS[i], window, tick, now)
    if log[GENERATION] ~= generation then
      force(log, tick, stamp, math.max(0, requests - log[REQUESTS]), math.max(0, tokens - log[TOKENS]))
    end
    for _ = 1, runs do
      stamp, requests, tokens, from = read('<ddd', numbers, from)
      force(log, tick, stamp, requests, tokens)
    end
    if log[WRITES] > NOTHING then
      log_write(log, now, '')
    end
  end)
end
return 1

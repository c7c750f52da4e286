-- Ask a token bucket for tokens: the twin of domain/bucket.py.
--
-- KEYS  1 tokenbucket:{id}  and, if the request has an id, 2 tokenbucket:{id}:<request id>
-- ARGV  1 doubles: now (µs, 0: TIME), deadline (µs, 0: none), rate (tokens a minute), burst, cost (tokens; 0 asks for
--         the state only), how long the request id is remembered (ms), whether it may have been asked before (1, or 0)
-- Reply {status, now, whole tokens left, wait (µs, -1: never), µs until full}. status as in allow.lua.
--
-- The key is 4 little-endian doubles: micro-tokens, sixtieths of a micro-token (0-59), µs of the last refill, µs when
-- it will be full. A bucket that is full has no key. Inside, levels are sixtieths of micro-tokens: `rate` of them come
-- a microsecond. When the clock was set back by more than a second, both times move back with it. All numbers stay below 2^53; a product above it is rounded, but then it is above any burst.
-- include: clock.lua
local STATE = '<dddd'
local PER_TOKEN = 60000000
local CLOCK_JUMP_US = 1000000
local given, deadline, rate, burst, cost, remember_ms, again = read('<ddddddd', ARGV[1])
local now = clock(given)
if deadline > 0 and now >= deadline then
  return {-1, now, 0, 0, 0}
end
local full, asked = burst * PER_TOKEN, cost * PER_TOKEN
local level, last = full, now
local raw, stored, full_at, jumped = call('GET', KEYS[1]), nil, nil, false
if raw then
  local micro, sixtieths
  micro, sixtieths, last, full_at = read(STATE, raw)
  stored = micro * 60 + sixtieths
  if now >= full_at then
    call('DEL', KEYS[1])
    last = now
  else
    jumped = last > now + CLOCK_JUMP_US
    if jumped then
      full_at, last = full_at - (last - now), now
    end
    level = math.min(full, stored + math.max(0, now - last) * rate)
    last = math.max(now, last)
  end
end

local function until_level(goal)
  return level >= goal and 0 or last - now + math.ceil((goal - level) / rate)
end

local repeated = again == 1 and call('EXISTS', KEYS[2]) == 1
local status, wait, taken = 1, 0, false
if cost > 0 and not repeated then
  if asked > level then
    status = 0
    wait = cost > burst and -1 or until_level(asked)
  else
    level, taken = level - asked, true
    if KEYS[2] then
      call('SET', KEYS[2], '', 'PX', remember_ms)
    end
  end
end
local full_in = until_level(full)
if taken then
  stored, full_at = level, now + full_in
end
if taken or jumped then
  local sixtieths = math.fmod(stored, 60)
  local state = pack(STATE, (stored - sixtieths) / 60, sixtieths, last, full_at)
  call('SET', KEYS[1], state, 'PX', math.ceil((full_at - now) / 1000))
end
return {status, now, math.floor(level / PER_TOKEN), wait, full_in}

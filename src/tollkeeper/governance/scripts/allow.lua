-- Ask a sliding window for a weight: the twin of ask_window in domain/limits.py.
--
-- KEYS  1 ratelimit:{id}:<window µs>  and, if the request has an id, 2 ratelimit:{id}:<window µs>:<request id>
-- ARGV  1 doubles: now (µs, 0: TIME), deadline (µs, 0: none), window (µs), tick (µs), limit, weight (0 asks for the
--         state only), how long the request id is remembered (ms), whether it may have been asked before (1, or 0)
-- Reply {status, now, weight in the window, wait (µs, -1: never), µs until the window is empty}.
--       status 1 allowed (now, or before by this request id), 0 refused, -1 late: nothing was changed.
-- include: clock.lua
-- include: window.lua
-- include: sliding.lua
local given, deadline, window, tick, limit, weight, remember_ms, again = read('<dddddddd', ARGV[1])
local now = clock(given)
if deadline > 0 and now >= deadline then
  return {-1, now, 0, 0, 0}
end
local log = log_open(KEYS[1], window, tick, now)
local repeated = again == 1 and call('EXISTS', KEYS[2]) == 1
local status, wait = 1, 0
if weight > 0 and not repeated then
  if log[REQUESTS] + weight <= limit then
    log_add(log, now, weight, 0)
    if KEYS[2] then
      call('SET', KEYS[2], '', 'PX', remember_ms)
    end
  else
    status = 0
    wait = weight > limit and -1 or log_wait(log, now, 1, log[REQUESTS] + weight - limit)
  end
end
if log[WRITES] > NOTHING then
  log_write(log, now, '')
end
return {status, now, log[REQUESTS], wait, log[TAIL] > log[HEAD] and log[LAST] + window - now or 0}

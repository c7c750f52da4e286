-- What admission does with a log of window.lua: forget, ask for the wait, add.
--
-- Here a log is an array, the fastest table there is: what follows, then the fields of the trailer. STAMP and INDEX are
-- those of the run that would get what is added now, WRITES is how much must be written even if nothing is added.
local KEY, WINDOW, STAMP, INDEX, WRITES = 1, 2, 3, 4, 5
local GENERATION, OFFSET, FIRST, HEAD, TAIL, REQUESTS, TOKENS = 6, 7, 8, 9, 10, 11, 12
local LAST, LAST_REQUESTS, LAST_TOKENS, OLDEST, EXPIRES = 13, 14, 15, 16, 17
local NOTHING, CHANGES, EVERYTHING = 0, 1, 2
local CHUNK_RUNS = 64
local CLOCK_JUMP_US = 1000000
local COMPACT_RUNS = 1024

-- Calls visit(stamp, requests, tokens) for the runs from the head on until it returns true. Stamps as stored.
local function log_walk(log, visit)
  local index = log[HEAD]
  while index < log[TAIL] do
    local count = math.min(CHUNK_RUNS, log[TAIL] - index)
    local at = (index - log[FIRST]) * RUN_BYTES
    local chunk = call('GETRANGE', log[KEY], at, at + count * RUN_BYTES - 1)
    for i = 0, count - 1 do
      if visit(read(RUN, chunk, i * RUN_BYTES + 1)) then
        return
      end
    end
    index = index + count
  end
end

-- Reads the trailer, forgets what has left the window, and pulls stamps back if the clock was set back by more than a
-- second. A missing key is an empty log that begins now; what it gets is the first thing that Redis hears of it.
local function log_open(key, window, tick, now)
  local over = now % tick
  local stamp = over == 0 and now or now - over + tick
  local raw = call('GETRANGE', key, '-96', '-1')
  if raw == '' then
    return {key, window, stamp, 0, NOTHING, now, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
  end
  local log = {key, window, stamp, 0, NOTHING, read(TRAILER, raw)}
  log[INDEX] = log[TAIL]
  if log[TAIL] == log[HEAD] then
    return log
  end
  if log[LAST] > stamp then
    if log[LAST] > stamp + CLOCK_JUMP_US then
      log[OFFSET] = log[OFFSET] - (log[LAST] - stamp)
      log[LAST], log[WRITES] = stamp, CHANGES
    end
    log[STAMP] = log[LAST]
  end
  if log[LAST] == log[STAMP] then
    log[INDEX] = log[TAIL] - 1
  end
  local horizon = now - window - log[OFFSET]
  if log[OLDEST] > horizon then
    return log
  end
  if log[LAST] - log[OFFSET] <= horizon then
    log[HEAD], log[INDEX], log[REQUESTS], log[TOKENS], log[WRITES] = log[TAIL], log[TAIL], 0, 0, EVERYTHING
    return log
  end
  log[WRITES] = CHANGES
  log_walk(log, function(run, requests, tokens)
    if run > horizon then
      log[OLDEST] = run
      return true
    end
    log[REQUESTS], log[TOKENS], log[HEAD] = log[REQUESTS] - requests, log[TOKENS] - tokens, log[HEAD] + 1
  end)
  return log
end

-- Time until runs worth `excess` (unit 1: requests, 2: tokens) have left the window.
local function log_wait(log, now, unit, excess)
  local wait = log[WINDOW]
  log_walk(log, function(stamp, requests, tokens)
    excess = excess - (unit == 1 and requests or tokens)
    if excess <= 0 then
      wait = stamp + log[OFFSET] + wait - now
      return true
    end
  end)
  return wait
end

-- Writes the trailer, and before it `run` (packed) as the newest run if it is not ''. The key then lives two windows more,
-- or so that it outlives its newest run: no run is stamped later than a tick after now, but those that were there when
-- the clock was set back, and for them it lived long enough before.
local function log_write(log, now, run)
  local known = run == '' and log[TAIL] or log[TAIL] - 1 -- the runs before this one are in Redis as they should be
  local prolong = log[LAST] + log[WINDOW] > log[EXPIRES]
  local everything = log[WRITES] == EVERYTHING or log[EXPIRES] == 0
  log[WRITES] = NOTHING
  local compact = log[HEAD] - log[FIRST] >= COMPACT_RUNS and log[HEAD] - log[FIRST] > log[TAIL] - log[HEAD]
  local live = ''
  if prolong or everything then
    log[EXPIRES] = now + 2 * log[WINDOW]
  end
  if everything then
    log[FIRST] = known
  elseif compact then
    local from = (log[HEAD] - log[FIRST]) * RUN_BYTES
    live = call('GETRANGE', log[KEY], from, (known - log[FIRST]) * RUN_BYTES - 1)
    log[FIRST] = log[HEAD]
  end
  local newest = run .. pack(TRAILER, unpack(log, GENERATION, EXPIRES))
  if everything then
    call('SET', log[KEY], newest, 'PX', math.ceil(log[WINDOW] / 500))
    return
  end
  if prolong then
    call('PEXPIRE', log[KEY], math.ceil(log[WINDOW] / 500))
  end
  if compact then
    call('SET', log[KEY], live .. newest, 'KEEPTTL')
  else
    call('SETRANGE', log[KEY], (known - log[FIRST]) * RUN_BYTES, newest)
  end
end

-- Records weights now.
local function log_add(log, now, requests, tokens)
  if log[INDEX] < log[TAIL] then
    requests = math.min(requests, WEIGHT_MAX - log[LAST_REQUESTS])
    tokens = math.min(tokens, WEIGHT_MAX - log[LAST_TOKENS])
    log[LAST_REQUESTS], log[LAST_TOKENS] = log[LAST_REQUESTS] + requests, log[LAST_TOKENS] + tokens
  else
    if log[TAIL] == log[HEAD] then
      log[OLDEST] = log[STAMP] - log[OFFSET]
    end
    log[LAST], log[LAST_REQUESTS], log[LAST_TOKENS] = log[STAMP], requests, tokens
    log[TAIL] = log[TAIL] + 1
  end
  log[REQUESTS], log[TOKENS] = log[REQUESTS] + requests, log[TOKENS] + tokens
  log_write(log, now, pack(RUN, log[LAST] - log[OFFSET], log[LAST_REQUESTS], log[LAST_TOKENS]))
end

-- What admission does with a log of window.lua: forget, ask for the wait, add.
local CHUNK_RUNS = 64
local CLOCK_JUMP_US = 1000000
local COMPACT_RUNS = 1024

local function ceiling(now, tick)
  local over = math.fmod(now, tick)
  return over == 0 and now or now - over + tick
end

-- Calls visit(stamp, requests, tokens) for the runs from the head on until it returns true. Stamps as stored.
local function log_walk(log, visit)
  local index = log.head
  while index < log.tail do
    local count = math.min(CHUNK_RUNS, log.tail - index)
    local at = log_position(log, index)
    local chunk = redis.call('GETRANGE', log.key, at, at + count * RUN_BYTES - 1)
    for i = 0, count - 1 do
      if visit(struct.unpack(RUN, chunk, i * RUN_BYTES + 1)) then
        return
      end
    end
    index = index + count
  end
end

-- Forgets what has left the window; pulls stamps back if the clock was set back by more than a second.
local function log_advance(log, now, tick)
  if log.tail == log.head then
    return
  end
  local top = ceiling(now, tick)
  if log.last > top + CLOCK_JUMP_US then
    log.offset = log.offset - (log.last - top)
    log.last = top
    log.dirty = true
  end
  local horizon = now - log.window - log.offset
  if log.oldest > horizon then
    return
  end
  log.dirty = true
  if log.last - log.offset <= horizon then
    log.head, log.requests, log.tokens, log.cut = log.tail, 0, 0, true
    return
  end
  log_walk(log, function(stamp, requests, tokens)
    if stamp > horizon then
      log.oldest = stamp
      return true
    end
    log.requests, log.tokens, log.head = log.requests - requests, log.tokens - tokens, log.head + 1
  end)
end

-- Time until runs worth `excess` (unit 1: requests, 2: tokens) have left the window.
local function log_wait(log, now, unit, excess)
  local wait = log.window
  log_walk(log, function(stamp, requests, tokens)
    excess = excess - (unit == 1 and requests or tokens)
    if excess <= 0 then
      wait = stamp + log.offset + log.window - now
      return true
    end
  end)
  return wait
end

-- The key lives two windows more, and so until its newest run has left: no run is stamped later than a tick after now,
-- but those that were there when the clock was set back, and for them it lived long enough before. Returns that in ms.
local function log_prolong(log, now)
  log.expires = now + 2 * log.window
  return math.ceil(log.window / 500)
end

-- Writes the header, and `run` (packed) as the newest run if given.
local function log_write(log, now, run)
  if log.fresh or log.cut then
    log.first = run and log.tail - 1 or log.tail
    local live_ms = log_prolong(log, now)
    redis.call('SET', log.key, log_header(log) .. (run or ''), 'PX', live_ms)
    return
  end
  if log.head - log.first >= COMPACT_RUNS and log.head - log.first > log.tail - log.head then
    local live = redis.call('GETRANGE', log.key, log_position(log, log.head), -1)
    log.first = log.head
    redis.call('SET', log.key, log_header(log) .. live, 'KEEPTTL')
  end
  if log.last + log.window > log.expires then
    redis.call('PEXPIRE', log.key, log_prolong(log, now))
  end
  redis.call('SETRANGE', log.key, 0, log_header(log))
  if run then
    redis.call('SETRANGE', log.key, log_position(log, log.tail - 1), run)
  end
end

-- Records weights now; returns the run's index.
local function log_add(log, now, tick, requests, tokens)
  local stamp = ceiling(now, tick)
  local empty = log.tail == log.head
  if not empty and log.last > stamp then
    stamp = log.last
  end
  if not empty and log.last == stamp then
    requests, tokens = math.min(requests, WEIGHT_MAX - log.last_requests), math.min(tokens, WEIGHT_MAX - log.last_tokens)
    log.last_requests, log.last_tokens = log.last_requests + requests, log.last_tokens + tokens
  else
    log.last, log.last_requests, log.last_tokens = stamp, requests, tokens
    log.tail = log.tail + 1
    if empty then
      log.oldest = stamp - log.offset
    end
  end
  log.requests, log.tokens = log.requests + requests, log.tokens + tokens
  log_write(log, now, struct.pack(RUN, log.last - log.offset, log.last_requests, log.last_tokens))
  return log.tail - 1
end

-- What admission does with a log of window.lua: forget, ask for the wait, add.
local CHUNK_RUNS = 64
local CLOCK_JUMP_US = 1000000
local COMPACT_RUNS = 1024

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

-- Forgets what has left the window; pulls stamps back if the clock was set back by more than a second. Sets `stamp`, that
-- of what would be added now. `dirty`: the log must be written even if nothing is added; `cut`: no run is left.
local function log_advance(log, now)
  local over = math.fmod(now, log.tick)
  local stamp = over == 0 and now or now - over + log.tick
  log.stamp = stamp
  if log.tail == log.head then
    return
  end
  if log.last > stamp then
    if log.last > stamp + CLOCK_JUMP_US then
      log.offset = log.offset - (log.last - stamp)
      log.last = stamp
      log.dirty = true
    end
    log.stamp = log.last
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
  log_walk(log, function(run, requests, tokens)
    if run > horizon then
      log.oldest = run
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

-- Writes the trailer, and before it `run` (packed) as the newest run if given.
local function log_write(log, now, run)
  local known = run == '' and log.tail or log.tail - 1 -- runs before this index are there as they should be
  if log.fresh or log.cut then
    log.first = known
    local live_ms = log_prolong(log, now)
    redis.call('SET', log.key, run .. log_trailer(log), 'PX', live_ms)
    return
  end
  if log.last + log.window > log.expires then
    redis.call('PEXPIRE', log.key, log_prolong(log, now))
  end
  if log.head - log.first >= COMPACT_RUNS and log.head - log.first > log.tail - log.head then
    local live = redis.call('GETRANGE', log.key, log_position(log, log.head), log_position(log, known) - 1)
    log.first = log.head
    redis.call('SET', log.key, live .. run .. log_trailer(log), 'KEEPTTL')
    return
  end
  redis.call('SETRANGE', log.key, log_position(log, known), run .. log_trailer(log))
end

-- The index of the run that would get what is added now.
local function log_next(log)
  return log.tail > log.head and log.last == log.stamp and log.tail - 1 or log.tail
end

-- Records weights now, in run log_next(log).
local function log_add(log, now, requests, tokens)
  if log.tail > log.head and log.last == log.stamp then
    requests, tokens = math.min(requests, WEIGHT_MAX - log.last_requests), math.min(tokens, WEIGHT_MAX - log.last_tokens)
    log.last_requests, log.last_tokens = log.last_requests + requests, log.last_tokens + tokens
  else
    if log.tail == log.head then
      log.oldest = log.stamp - log.offset
    end
    log.last, log.last_requests, log.last_tokens = log.stamp, requests, tokens
    log.tail = log.tail + 1
  end
  log.requests, log.tokens = log.requests + requests, log.tokens + tokens
  log_write(log, now, struct.pack(RUN, log.last - log.offset, log.last_requests, log.last_tokens))
end

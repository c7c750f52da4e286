-- The exact sliding window on a packed string: the twin of domain/windows.py. This part reads and writes a log; what
-- admission and settlement do with it is in admit.lua and correct.lua.
--
-- A log is one Redis string: a header of 12 little-endian doubles, then runs of 17 bytes. Run i lies at
-- HEADER_BYTES + (i - first) * RUN_BYTES. A run's stamp is stored less `offset`, so that all stamps move at once when
-- the clock was set back. Fields of the header, in order:
--   generation  µs, when the log was made; a correction of a run of another generation does nothing
--   offset      µs, added to every stored stamp
--   first       index of the first run that is physically there
--   head, tail  indexes: runs head .. tail-1 are in the window
--   requests, tokens            sums over the window
--   last, last_requests, last_tokens   the newest run (last: its stamp, offset added)
--   oldest      the stored stamp of run `head`
--   expires     µs, when the key expires as last told to Redis
local HEADER = '<dddddddddddd'
local HEADER_BYTES = 96
local RUN = '<I7I5I5'
local RUN_BYTES = 17
local WEIGHT_MAX = 1099511627775 -- what 5 bytes hold; a run that would get more keeps this much

-- Reads the header. A missing key is an empty log that begins now.
local function log_open(key, window, now)
  local raw = redis.call('GETRANGE', key, 0, HEADER_BYTES - 1)
  local fresh = #raw == 0
  local generation, offset, first, head, tail, requests, tokens = now, 0, 0, 0, 0, 0, 0
  local last, last_requests, last_tokens, oldest, expires = 0, 0, 0, 0, 0
  if not fresh then
    generation, offset, first, head, tail, requests, tokens, last, last_requests, last_tokens, oldest, expires =
      struct.unpack(HEADER, raw)
  end
  return {
    key = key, window = window, fresh = fresh, dirty = false, cut = false, index = -1, tick = 0,
    limit_requests = -1, limit_tokens = -1, shadow_requests = -1, shadow_tokens = -1, generation = generation, offset = offset, first = first, head = head,
    tail = tail, requests = requests, tokens = tokens, last = last, last_requests = last_requests,
    last_tokens = last_tokens, oldest = oldest, expires = expires,
  }
end

local function log_header(log)
  return struct.pack(HEADER, log.generation, log.offset, log.first, log.head, log.tail, log.requests, log.tokens,
    log.last, log.last_requests, log.last_tokens, log.oldest, log.expires)
end

local function log_position(log, index)
  return HEADER_BYTES + (index - log.first) * RUN_BYTES
end

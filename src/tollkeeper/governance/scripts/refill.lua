-- A token bucket on a packed string: the twin of domain/bucket.py.
--
-- The key is 6 little-endian doubles: micro-tokens, sixtieths of a micro-token (0-59), µs of the last refill, µs when it
-- will be full, its generation (µs, when it was last full), whole tokens that came back unused since. A bucket that is full
-- has no key. Inside, levels are sixtieths of micro-tokens: `rate` of them come a microsecond; below zero is a debt. When
-- the clock was set back by more than a second, the times move back with it. All numbers stay below 2^53; a product above
-- it is rounded, but then it is above any burst.
local STATE = '<dddddd'
local PER_TOKEN = 60000000
local DEBT_MAX = 75000000
local CLOCK_JUMP_US = 1000000

local function bucket_until(bucket, goal, now)
  return bucket.level >= goal and 0 or bucket.last - now + math.ceil((goal - bucket.level) / bucket.rate)
end

-- Writes a bucket with a level of its own; `full_at` µs.
local function bucket_write(bucket, level, full_at, now)
  if full_at <= now then
    call('DEL', bucket.key)
    return
  end
  local sixtieths = level % 60
  local state =
    pack(STATE, (level - sixtieths) / 60, sixtieths, bucket.last, full_at, bucket.generation, bucket.returned)
  call('SET', bucket.key, state, 'PX', math.ceil((full_at - now) / 1000))
end

-- Reads a bucket and refills it to now.
local function bucket_open(key, rate, burst, now)
  local full = burst * PER_TOKEN
  local bucket = {key = key, rate = rate, full = full, level = full, last = now, generation = now, returned = 0, new = true}
  local raw = call('GET', key)
  if not raw then
    return bucket
  end
  local micro, sixtieths, last, full_at, generation, returned = read(STATE, raw)
  if now >= full_at then
    call('DEL', key)
    return bucket
  end
  local stored = micro * 60 + sixtieths
  bucket.new = false
  if last > now + CLOCK_JUMP_US then
    bucket_write(bucket, stored, full_at - (last - now), now)
    last = now
  else
    bucket.generation, bucket.returned = generation, returned
  end
  bucket.level = math.min(full, stored + math.max(0, now - last) * rate)
  bucket.last = math.max(now, last)
  return bucket
end

local function bucket_add(bucket, tokens, now)
  bucket.level = math.min(bucket.full, math.max(bucket.level + tokens * PER_TOKEN, -DEBT_MAX * PER_TOKEN))
  bucket_write(bucket, bucket.level, now + bucket_until(bucket, bucket.full, now), now)
end

-- Gives back tokens that were taken and not used, or takes more (negative). `generation`, `at`, `level`, `returned` tell what
-- the bucket was when they were taken. They come back only as far as it could not have been filled up since.
local function bucket_correct(bucket, generation, at, level, returned, tokens, now)
  if tokens > 0 then
    local flowed = bucket.rate * (bucket.last - at) + (bucket.returned - returned) * PER_TOKEN
    tokens = math.min(tokens, math.floor((bucket.full - level - flowed) / PER_TOKEN))
    if bucket.new or bucket.generation ~= generation or tokens <= 0 then
      return
    end
    bucket.returned = bucket.returned + tokens
  end
  bucket_add(bucket, tokens, now)
end

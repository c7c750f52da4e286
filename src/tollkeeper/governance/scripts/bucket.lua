-- Ask a token bucket for tokens: the twin of Bucket.ask in domain/bucket.py.
--
-- KEYS  1 tokenbucket:{id}  and, if the request has an id, 2 tokenbucket:{id}:<request id>
-- ARGV  1 doubles: now (µs, 0: TIME), deadline (µs, 0: none), rate (tokens a minute), burst, cost (tokens; 0 asks for
--         the state only), how long the request id is remembered (ms), whether it may have been asked before (1, or 0)
-- Reply {status, now, whole tokens left, wait (µs, -1: never), µs until full}. status as in allow.lua.
-- include: clock.lua
-- include: refill.lua
local given, deadline, rate, burst, cost, remember_ms, again = read('<ddddddd', ARGV[1])
local now = clock(given)
if deadline > 0 and now >= deadline then
  return {-1, now, 0, 0, 0}
end
local bucket = bucket_open(KEYS[1], rate, burst, now)
local asked = cost * PER_TOKEN
local repeated = again == 1 and call('EXISTS', KEYS[2]) == 1
local status, wait = 1, 0
if cost > 0 and not repeated then
  if asked > bucket.level then
    status = 0
    wait = cost > burst and -1 or bucket_until(bucket, asked, now)
  else
    bucket_add(bucket, -cost, now)
    if KEYS[2] then
      call('SET', KEYS[2], '', 'PX', remember_ms)
    end
  end
end
return {status, now, math.floor(bucket.level / PER_TOKEN), wait, bucket_until(bucket, bucket.full, now)}

-- Keep a lease, or give it up: the twin of LogQueue.renew in domain/log_queue.py.
--
-- KEYS  1 <p>state
-- ARGV  1 doubles: now (µs, 0: TIME), how long from now (µs, 0: whoever asks next gets it)  2 run  3 number of the lease
-- Reply 1, or 0: it is not leased any more.
-- include: clock.lua
-- include: logqueue.lua
local given, hold = struct.unpack('<dd', ARGV[1])
local q = queue_open()
local leases = q.prefix .. 'leases'
if q.run ~= ARGV[2] or not redis.call('ZSCORE', leases, ARGV[3]) then
  return 0
end
queue_write_on(q)
redis.call('ZADD', leases, whole(clock(given) + hold), ARGV[3])
return 1

-- A queue at one instant: the twin of LogQueue.stats in domain/log_queue.py.
--
-- KEYS  1 <p>state
-- ARGV  1 doubles: now (µs, 0: TIME)
-- Reply {waiting, its bytes, leased, its bytes, leases, delivered, taken, dropped, lost, repeated, shed, unlisted, gaps,
--       when the oldest record came (µs, 0: there is none), now}.
-- include: clock.lua
-- include: logqueue.lua
local now = clock(struct.unpack('<d', ARGV[1]))
local q = queue_open()
local head = queue_at(q, 0)
local oldest = head and head.stamp or 0
local leases = redis.call('ZRANGEBYSCORE', q.prefix .. 'leases', '-inf', '+inf')
for _, number in ipairs(leases) do
  local _, _, stamp = struct.unpack(LEASE, redis.call('LINDEX', q.prefix .. 'lease:' .. number, 0))
  if stamp > 0 and (oldest == 0 or stamp < oldest) then
    oldest = stamp
  end
end
return {q.count, q.bytes, q.leased, q.leased_bytes, #leases, q.delivered, q.taken, q.dropped, q.lost, q.repeated,
  q.shed, q.unlisted, redis.call('HLEN', q.prefix .. 'gaps'), oldest, now}

-- A producer tells that numbers never come: the twin of LogQueue.note in domain/log_queue.py.
--
-- KEYS  1 <p>state
-- ARGV  1 doubles: now (µs, 0: TIME), first number, last number  2 producer  3 run, if the queue has none
--       4 kind: dropped or lost
-- Reply 1, or 0: they are at or below the producer's mark.
-- include: clock.lua
-- include: logqueue.lua
local given, first, last = struct.unpack('<ddd', ARGV[1])
local now = clock(given)
local q = queue_open(ARGV[3])
first = math.max(first, mark_of(q, ARGV[2], now) + 1)
if last >= first then
  mark_set(q, ARGV[2], last, now)
  gap_add(q, ARGV[4], ARGV[2], first, last)
end
queue_save(q)
return last >= first and 1 or 0

-- Drop the oldest waiting records: the twin of LogQueue.clear in domain/log_queue.py.
--
-- KEYS  1 <p>state
-- ARGV  1 the most records: called again and again, so that no call takes long
-- Reply how many were dropped.
-- include: logqueue.lua
local q = queue_open()
local before = q.count
queue_write_on(q)
queue_drop(q, tonumber(ARGV[1]), 0)
queue_save(q)
return before - q.count

-- Bring back a counter of an ended period that has left Redis; one that is there stays as it is. Tree.restore.
--
-- KEYS  1 marks:{root}  2 the counter
-- ARGV  time to live (ms), the counter as counter.lua tells, without a generation
-- Reply 1 restored, 0 it was there or the tree is cold.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
-- include: full.lua
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[1])
return 1

-- While idempotency keys are on their way from the database (seed.lua): one that was looked up there, after this memory
-- was told which it is. The twin of Tree.looked_up.
--
-- KEYS  1 marks:{root}  2 looked:{root}  3 used:{root}:<digest>
-- ARGV  1 run  2 digest  3 what is remembered as use.lua writes it ('': the database does not know it)  4 until when (ms)
-- Reply 1 it is known now, or was looked up before; 2 all keys are there; 0 this is another memory. Both change nothing.
-- include: full.lua
local tree = redis.call('HMGET', KEYS[1], 'run', '.keys')
if tree[1] ~= ARGV[1] then
  return 0
end
if not tree[2] then
  return 2
end
if redis.call('HSETNX', KEYS[2], ARGV[2], '') == 0 then
  return 1
end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[3])
else
  redis.call('SET', KEYS[3], ARGV[3], 'PXAT', ARGV[4])
end
return 1

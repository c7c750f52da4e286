-- Number this memory, so that the database can tell it from those before it: it takes nothing of a memory with a lower
-- number than one that it has given. The twin of Tree.fence.
--
-- KEYS  1 marks:{root}
-- ARGV  run and the server's life for which the number was asked, the number, the server's life that the caller is
--       connected to
-- Reply 1 numbered, 0 this is another memory by now, or it went back to an earlier state: it needs a number of its own.
local tree = redis.call('HMGET', KEYS[1], 'run', '.fence')
if tree[1] ~= ARGV[1] or ARGV[2] ~= ARGV[4] then
  return 0
end
local life, number = string.match(tree[2] or '', '^(.*) (%d+)$')
-- include: full.lua
if life ~= ARGV[4] or tonumber(number) < tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], '.fence', ARGV[4] .. ' ' .. ARGV[3])
end
return 1

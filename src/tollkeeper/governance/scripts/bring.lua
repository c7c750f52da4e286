-- Some of the idempotency keys that are on their way from the database (seed.lua), read after this memory was told which it
-- is. What was looked up by itself (looked.lua) may have changed since, and stays. The twin of Tree.bring.
--
-- KEYS  1 marks:{root}  2 looked:{root}
-- ARGV  1 run  2 who brings them  3 doubles: now (µs, 0: TIME), how long nobody else need bring them (µs)  4 '1' if these are
--       the last, or ''  5 prefix of used keys  then per key: its digest, what is remembered as use.lua writes it, until when (ms)
-- Reply 1 they are there; 0 nothing was changed: this is another memory, all are there, or another brings them.
-- include: clock.lua
-- include: full.lua
local given, lease = read('<dd', ARGV[3])
local tree, now = call('HMGET', KEYS[1], 'run', '.keys'), clock(given)
local bearer, till = string.match(tree[2] or '', '^(.*) (%d+)$')
if tree[1] ~= ARGV[1] or not bearer or bearer ~= ARGV[2] and now < tonumber(till) then
  return 0
end
for i = 6, #ARGV, 3 do
  if call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    call('SET', ARGV[5] .. ARGV[i], ARGV[i + 1], 'PXAT', ARGV[i + 2])
  end
end
if ARGV[4] == '1' then
  call('HDEL', KEYS[1], '.keys')
  call('DEL', KEYS[2])
else
  call('HSET', KEYS[1], '.keys', ARGV[2] .. ' ' .. string.format('%.0f', now + lease))
end
return 1

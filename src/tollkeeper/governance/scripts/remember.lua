-- Before a seed: the idempotency keys that the database knows, so that no entry that comes again charges twice. The twin
-- of Tree.remember.
--
-- KEYS  1 unsaved:{root}
-- ARGV  prefix of used keys, then per idempotency key: its digest, what is remembered as use.lua writes it, until when (ms)
-- include: full.lua
local unsaved = redis.call('HLEN', KEYS[1]) > 0
for i = 2, #ARGV, 3 do
  redis.call('SET', ARGV[1] .. ARGV[i], ARGV[i + 1], 'PXAT', ARGV[i + 2])
  if unsaved then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end

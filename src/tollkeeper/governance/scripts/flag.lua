-- Flag counters as changed whatever they say of themselves: the database was seen to have other sums. The twin of Tree.flag.
--
-- KEYS  1 marks:{root}  2 changed:{root}  then the counters
-- ARGV  length of the prefix of counter keys
-- Reply how many had no flag. Nothing is flagged of a cold tree, nor what is no counter.
-- include: counter.lua
local call, flagged = redis.call, 0
local sync = call('HGET', KEYS[1], 'sync')
if not sync then
  return 0
end
for i = 3, #KEYS do
  local key = KEYS[i]
  local raw = call('GET', key)
  if raw and #raw >= COUNTER_BYTES then
    flagged = flagged + call('HSETNX', KEYS[2], string.sub(key, ARGV[1] + 1), sync)
    call('HSET', KEYS[2], string.sub(key, ARGV[1] + 1), sync)
    -- Last: a counter that says so is flagged.
    call('SET', key, string.sub(raw, 1, COUNTER_BYTES) .. sync, 'KEEPTTL')
  end
end
return flagged

-- Hold again what a producer still has in flight, after a loss or under a new name. The twin of Tree.reassert, for one
-- attempt.
--
-- KEYS  1 marks:{root}  2 hold:{root}  then its counters
-- ARGV  attempt, amount (nano-dollars), the hold as holds.lua tells, its producer, the last number that this had given
--       when the attempt was in flight; then per counter its expiry (µs, 0: never)
-- Reply 1 held, 0 it was held (the hold is this producer's now), -1 nothing was changed: the tree is cold, or late: it has
--       entries of a higher number, or the producer is buried. The attempt's end may be among them, and nothing would
--       release the hold any more.
-- include: clock.lua
-- include: counter.lua
-- An error if one of the keys is of another type or no counter; then nothing was changed.
local tree = call('HMGET', KEYS[1], 'run', ARGV[4])
if not tree[1] or tree[2] and tonumber(tree[2]) > tonumber(ARGV[5]) then
  return -1
end
local amount, counters = tonumber(ARGV[2]), {}
for i = 3, #KEYS do
  counters[i] = call('GET', KEYS[i])
  if counters[i] then
    read(COUNTER, counters[i])
  end
end
-- include: full.lua
if call('HSET', KEYS[2], ARGV[1], ARGV[3]) == 0 then
  return 0
end
for i = 3, #KEYS do
  local raw = counters[i]
  if raw then
    local cost, held = read('<dd', raw)
    call('SETRANGE', KEYS[i], '0', pack('<dd', cost, held + amount))
  else
    counter_make(KEYS[i], pack(COUNTER, 0, amount, 0, 0, 0, 0), tonumber(ARGV[3 + i]))
  end
end
return 1

-- Hold again what a producer still has in flight, after a loss or under a new name. The twin of Tree.reassert, for one
-- attempt.
--
-- KEYS  1 marks:{root}  2 hold:{root}  then its counters
-- ARGV  attempt, amount (nano-dollars), the hold as holds.lua tells; then per counter its expiry (µs, 0: never)
-- Reply 1 held, 0 it was held (the hold is this producer's now) or the tree is cold.
-- include: clock.lua
-- include: counter.lua
-- An error if one of the keys is of another type or no counter; then nothing was changed.
if call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local amount, counters = tonumber(ARGV[2]), {}
for i = 3, #KEYS do
  counters[i] = call('GET', KEYS[i])
  if counters[i] then
    read(COUNTER, counters[i])
  end
end
if call('HSET', KEYS[2], ARGV[1], ARGV[3]) == 0 then
  return 0
end
for i = 3, #KEYS do
  local raw = counters[i]
  if raw then
    local cost, held = read('<dd', raw)
    call('SETRANGE', KEYS[i], '0', pack('<dd', cost, held + amount))
  else
    counter_make(KEYS[i], pack(COUNTER, 0, amount, 0, 0, 0, 0), tonumber(ARGV[1 + i]))
  end
end
return 1

-- End a dead producer: its later numbers are refused. With `release` what it still holds is released as well: all that it
-- had dispatched has been charged by entries before this one. The twin of Tree.apply for bury and close.
--
-- KEYS  1 marks:{root}  2 hold:{root}
-- ARGV  producer, number, the producer that is buried, release (1, or 0), prefix of counter keys, prefix of slot keys, slot
--       key of the root itself
-- Reply {status, mark, 0}: 0 ok (now or before), 1 gap, 2 cold, 5 damaged: a hold names what is no counter. Counters and
--       slots are found through the holds; they carry the same tag.
-- include: clock.lua
-- include: counter.lua
-- include: holds.lua
-- include: marks.lua
local producer, entry, dead, release = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local counter_prefix, slot_prefix, root_slot = ARGV[5], ARGV[6], ARGV[7]
-- include: numbered.lua

local holds, whole = {}, true
if release then
  each_hold(KEYS[2], function(attempt, amount, owner, counters, slots)
    if owner == dead then
      holds[#holds + 1] = {attempt, amount, counters, slots}
      whole = whole and all_counters(counter_prefix, counters)
    end
  end)
end
if not whole then
  return {5, mark, 0}
end

-- Nothing below can fail: validate first, write last.
-- include: full.lua
local reached = tonumber(call('HGET', KEYS[1], dead) or 0)
if reached < BURIED then
  call('HSET', KEYS[1], dead, string.format('%.0f', BURIED + reached))
end
for _, hold in ipairs(holds) do
  call('HDEL', KEYS[2], hold[1])
  release_hold(counter_prefix, hold[3], hold[2])
  each_name(hold[4], function(name)
    pcall(call, 'ZREM', name == '.' and root_slot or slot_prefix .. name, hold[1])
  end)
end
call('HSET', KEYS[1], producer, ARGV[2])
return {0, entry, 0}

-- End a dead producer: its later numbers are refused. With `release` what it still holds is released as well: all that it
-- had dispatched has been charged by entries before this one. The twin of Tree.apply for bury and close.
--
-- KEYS  1 marks:{root}  2 hold:{root}
-- ARGV  producer, number, the producer that is buried, release (1, or 0), prefix of counter keys, prefix of slot keys, slot
--       key of the root itself
-- Reply {status, mark}: 0 ok, 1 gap, 2 cold. Counters and slots are found through the holds; they carry the same tag.
-- include: clock.lua
-- include: holds.lua
-- include: marks.lua
local producer, number, dead, release = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local counter_prefix, slot_prefix, root_slot = ARGV[5], ARGV[6], ARGV[7]
local tree = call('HMGET', KEYS[1], 'run', producer, dead)
if not tree[1] then
  return {2, 0}
end
local mark, reached = tonumber(tree[2] or 0), tonumber(tree[3] or 0)
if number <= mark then
  return {0, mark}
end
if number ~= mark + 1 then
  return {1, mark}
end
if reached < BURIED then
  call('HSET', KEYS[1], dead, string.format('%.0f', BURIED + reached))
end
if release then
  each_hold(KEYS[2], function(attempt, amount, owner, counters, slots)
    if owner ~= dead then
      return
    end
    call('HDEL', KEYS[2], attempt)
    each_name(counters, function(name)
      local raw = call('GET', counter_prefix .. name)
      if raw then
        local spent, kept = read('<dd', raw)
        call('SETRANGE', counter_prefix .. name, '0', pack('<dd', spent, kept - amount))
      end
    end)
    each_name(slots, function(name)
      call('ZREM', name == '.' and root_slot or slot_prefix .. name, attempt)
    end)
  end)
end
call('HSET', KEYS[1], producer, ARGV[2])
return {0, number}

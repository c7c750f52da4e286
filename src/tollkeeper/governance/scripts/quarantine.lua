-- Set one numbered entry aside that the store refuses again and again: its mark moves, its amount is only listed. The twin
-- of Tree.apply for quarantine.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  4 charges:{root}
-- ARGV  producer, number, attempt, name of the record, the record (charge.lua tells its form), prefix of counter keys
-- Reply {status, mark, 0}: 0 ok (now or before), 1 gap, 2 cold. The hold is released as far as what it names are counters.
-- include: clock.lua
-- include: counter.lua
-- include: holds.lua
local producer, entry, attempt, name, prefix = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[6]
-- include: numbered.lua

call('HDEL', KEYS[3], '')
call('HSET', KEYS[4], name, ARGV[5])
call('HSET', KEYS[3], '!' .. name, sync)
call('HSET', KEYS[1], producer, ARGV[2])

-- What was to be written is. The rest is for the budget's sake.
pcall(function()
  local amount, _, names = string.match(call('HGET', KEYS[2], attempt), '^(%d+)\n([^\n]*)\n([^\n]*)\n')
  call('HDEL', KEYS[2], attempt)
  each_name(names, function(counter)
    local ran, whole = pcall(all_counters, prefix, counter)
    if ran and whole then
      release_hold(prefix, counter, amount)
    end
  end)
end)
return {0, entry, 0}

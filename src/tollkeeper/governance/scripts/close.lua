-- End a dead producer: release all it still holds and refuse its later numbers. What it had dispatched has been charged
-- by entries before this one. The twin of Tree._close in domain/tree.py.
--
-- KEYS  1 marks:{root}  2 hold:{root}
-- ARGV  producer, number, CLOSED, prefix of counter keys, prefix of slot keys, slot key of the root itself
-- Reply {status, mark}: 0 ok, 1 gap, 2 cold. Counters and slots are found through the holds; they carry the same tag.
-- include: holds.lua
local producer, number, closed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local counter_prefix, slot_prefix, root_slot = ARGV[4], ARGV[5], ARGV[6]
local tree = redis.call('HMGET', KEYS[1], 'run', producer)
if not tree[1] then
  return {2, 0}
end
local mark = tonumber(tree[2] or 0)
if number <= mark then
  return {0, mark}
end
if number ~= mark + 1 then
  return {1, mark}
end
each_hold(KEYS[2], function(attempt, amount, owner, counters, slots)
  if owner ~= producer then
    return
  end
  redis.call('HDEL', KEYS[2], attempt)
  each_name(counters, function(name)
    local raw = redis.call('GET', counter_prefix .. name)
    if raw then
      local cost, held = struct.unpack('<dd', raw)
      redis.call('SETRANGE', counter_prefix .. name, '0', struct.pack('<dd', cost, held - amount))
    end
  end)
  each_name(slots, function(name)
    redis.call('ZREM', name == '.' and root_slot or slot_prefix .. name, attempt)
  end)
end)
redis.call('HSET', KEYS[1], producer, string.format('%.0f', closed))
return {0, closed}

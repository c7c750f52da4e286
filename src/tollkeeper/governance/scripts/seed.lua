-- Load a tree that does not dominate the database: absolutely, never by adding, and without holds. The twin of Tree.seed.
--
-- KEYS  1 marks:{root}  2 hold:{root}  3 changed:{root}  4 unsaved:{root}  5 charges:{root}  6 looked:{root}
-- ARGV  run (a nonce of this memory's life), prefix of counter keys, number of marks, number of counters, prefix of used
--       keys; the server's life if nothing can have been lost, so that nobody need be waited for ('': gate.lua begins to
--       wait); '1' if the idempotency keys that the database remembers follow (bring.lua), '' if they are there; then
--       per mark: producer, number; per counter: name, expiry (µs, 0: never), itself as counter.lua tells, without a generation
-- Reply 1 seeded, 0 this memory already dominates the database.
-- include: clock.lua
-- include: counter.lua
-- include: holds.lua
-- include: marks.lua
local run, prefix, mark_count, counter_count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local used_prefix, server = ARGV[5], ARGV[6]
local dominates = redis.call('HEXISTS', KEYS[1], 'run') == 1
for i = 1, mark_count do
  local here = tonumber(redis.call('HGET', KEYS[1], ARGV[6 + 2 * i]) or 0)
  if not covers(here, tonumber(ARGV[7 + 2 * i])) then
    dominates = false
  end
end
if dominates then
  return 0
end
local unsure, unsaved = redis.call('HKEYS', KEYS[3]), redis.call('HKEYS', KEYS[4])
each_hold(KEYS[2], function(_, _, _, counters)
  each_name(counters or '', function(name)
    unsure[#unsure + 1] = name
  end)
end)

-- Nothing below can fail: validate first, write last. Without its counters a tree that is not cold would pass for unspent.
for _, name in ipairs(unsure) do
  redis.call('DEL', prefix .. name)
end
for _, digest in ipairs(unsaved) do
  redis.call('DEL', used_prefix .. digest)
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local sync = run .. ':1'
redis.call('HSET', KEYS[1], 'run', run, 'sync', sync)
if server ~= '' then
  redis.call('HSET', KEYS[1], '.server', server)
end
if ARGV[7] == '1' then
  redis.call('HSET', KEYS[1], '.keys', ' 0')
end
for i = 1, mark_count do
  redis.call('HSET', KEYS[1], ARGV[6 + 2 * i], ARGV[7 + 2 * i])
end
for i = 1, counter_count do
  local at = 7 + 2 * mark_count + 3 * (i - 1)
  counter_make(prefix .. ARGV[at + 1], ARGV[at + 3] .. sync, tonumber(ARGV[at + 2]))
  redis.call('HSET', KEYS[3], ARGV[at + 1], sync)
end
return 1

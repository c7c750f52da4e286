-- Bring back the record of an attempt that left Redis when the database had it; the twin of Tree.recall.
--
-- KEYS  1 marks:{root}  2 charges:{root}
-- ARGV  run and drops as they were before the database was asked, attempt, its record there (charge.lua tells its form);
--       then per mark of the database: producer, number
-- Reply 1 the record is here, 0 a record has left since or this is another run: ask the database again, -1 the database
--       has more than this memory, which must be seeded first.
-- include: clock.lua
-- include: marks.lua
local tree = call('HMGET', KEYS[1], 'run', '.drops')
if tree[1] ~= ARGV[1] or (tree[2] or '0') ~= ARGV[2] then
  return 0
end
for i = 5, #ARGV, 2 do
  if not covers(tonumber(call('HGET', KEYS[1], ARGV[i]) or 0), tonumber(ARGV[i + 1])) then
    return -1
  end
end
-- include: full.lua
call('HSETNX', KEYS[2], ARGV[3], ARGV[4])
return 1

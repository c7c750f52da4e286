-- After the database's commit: clear the flags of counters that have not changed since the snapshot. Idempotency keys
-- that were not saved are cleared in the same way: digest, text.
--
-- KEYS  1 marks:{root}  2 changed:{root} or unsaved:{root}
-- ARGV  run of the snapshot, then per counter: name, generation of its flag then
-- Reply the number of flags cleared. A snapshot begins a new generation, so what has changed since has another; in
-- another run nothing is cleared.
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] then
  return 0
end
local cleared = 0
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[2], ARGV[i])
    cleared = cleared + 1
  end
end
return cleared

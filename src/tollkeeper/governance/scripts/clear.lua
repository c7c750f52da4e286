-- After the database's commit: clear the flags of what has not changed since the snapshot. Records of attempts leave with
-- their flags. Idempotency keys that were not saved are cleared in the same way: digest, text.
--
-- KEYS  1 marks:{root}  2 changed:{root} or unsaved:{root}  3 charges:{root}
-- ARGV  run and the server's life of the snapshot, then per counter or `!` and attempt: name, generation of its flag
--       then; last the server's life that the caller is connected to
-- Reply the number of flags cleared. A snapshot begins a new generation, so what has changed since has another; in
-- another run nothing is cleared, nor in another life, in which memory may have gone back to an earlier state.
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] or ARGV[2] ~= ARGV[#ARGV] then
  return 0
end
local cleared = 0
for i = 3, #ARGV - 1, 2 do
  local name = ARGV[i]
  if redis.call('HGET', KEYS[2], name) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[2], name)
    cleared = cleared + 1
    local attempt = string.match(name, '^!(.*)')
    if attempt and redis.call('HDEL', KEYS[3], attempt) == 1 then
      redis.call('HINCRBY', KEYS[1], '.drops', '1')
    end
  end
end
return cleared

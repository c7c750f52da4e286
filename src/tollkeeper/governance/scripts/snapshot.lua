-- Marks and changed counters, true at one instant: what the sync worker writes to the database in one transaction. The
-- twin of Tree.changes.
--
-- KEYS  1 marks:{root}  2 changed:{root}  3 unsaved:{root}
-- ARGV  prefix of counter keys
-- Reply {} if the tree is cold, else {{field, value, …} of marks (with `run` and `sync`), {digest, text, …} of idempotency
--       keys that are not saved, then per changed counter {name, generation of its flag, the counter as counter.lua tells
--       ('': it has left Redis)}}. A new generation begins: what changes from now on is flagged anew.
local marks = redis.call('HGETALL', KEYS[1])
if #marks == 0 then
  return {}
end
local answer, changed = {marks, redis.call('HGETALL', KEYS[3])}, redis.call('HGETALL', KEYS[2])
for i = 1, #changed, 2 do
  answer[#answer + 1] = {changed[i], changed[i + 1], redis.call('GET', ARGV[1] .. changed[i]) or ''}
end
if #changed > 0 then
  local run, number = string.match(redis.call('HGET', KEYS[1], 'sync'), '^(.*):(%d+)$')
  redis.call('HSET', KEYS[1], 'sync', run .. ':' .. string.format('%.0f', number + 1))
end
return answer

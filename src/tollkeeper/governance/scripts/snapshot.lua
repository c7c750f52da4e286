-- Marks, and counters and records that changed, true at one instant: what the sync worker writes to the database in one
-- transaction. The twin of Tree.changes.
--
-- KEYS  1 marks:{root}  2 changed:{root}  3 unsaved:{root}  4 charges:{root}
-- ARGV  prefix of counter keys, the server's life that the caller is connected to
-- Reply {} if the tree is cold, else {{field, value, …} of marks (with `run` and `sync`), {digest, text, …} of idempotency
--       keys that are not saved, the life, this memory's number ('0': it was given none in this life, fence.lua),
--       then per changed counter {name, generation of its flag, the counter as counter.lua tells
--       ('': it has left Redis)}, per changed record {`!` and attempt, generation, the record as charge.lua tells}}. A new
--       generation begins: what changes from now on is flagged anew.
local marks = redis.call('HGETALL', KEYS[1])
if #marks == 0 then
  return {}
end
local life, number = string.match(redis.call('HGET', KEYS[1], '.fence') or '', '^(.*) (%d+)$')
local answer = {marks, redis.call('HGETALL', KEYS[3]), ARGV[2], life == ARGV[2] and number or '0'}
local changed = redis.call('HGETALL', KEYS[2])
for i = 1, #changed, 2 do
  local name = changed[i]
  local attempt = string.match(name, '^!(.*)')
  local value = attempt and redis.call('HGET', KEYS[4], attempt) or not attempt and redis.call('GET', ARGV[1] .. name)
  answer[#answer + 1] = {name, changed[i + 1], value or ''}
end
-- include: full.lua
if #changed > 0 then
  local run, number = string.match(redis.call('HGET', KEYS[1], 'sync'), '^(.*):(%d+)$')
  redis.call('HSET', KEYS[1], 'sync', run .. ':' .. string.format('%.0f', number + 1))
end
return answer

-- Marks and changed counters, true at one instant: what the sync worker writes to the database in one transaction.
--
-- KEYS  1 marks:{root}  2 changed:{root}
-- ARGV  prefix of counter keys
-- Reply {} if the tree is cold, else {{field, value, …} of marks (with `run`), then per changed counter
--       {name, version, cost, requests, input, output, cached}}.
local marks = redis.call('HGETALL', KEYS[1])
if #marks == 0 then
  return {}
end
local answer, changed = {marks}, redis.call('HGETALL', KEYS[2])
for i = 1, #changed, 2 do
  local totals = redis.call('HMGET', ARGV[1] .. changed[i], 'cost', 'requests', 'input', 'output', 'cached')
  local row = {changed[i], changed[i + 1]}
  for field = 1, 5 do
    row[2 + field] = totals[field] or '0'
  end
  answer[#answer + 1] = row
end
return answer

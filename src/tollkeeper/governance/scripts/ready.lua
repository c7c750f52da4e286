-- A producer has sent again all it has, and holds again what is in flight. The twin of Tree.ready.
--
-- KEYS  1 marks:{root}
-- ARGV  1 the run it was sent to  2 producer  3 now (µs, 0: TIME, as a double)
-- Reply 1 counted, or it was not waited for; 2 the grace had passed: what it sent is late; 0 this is another run.
-- include: clock.lua
local producer, given = ARGV[2], read('<d', ARGV[3])
local tree = call('HMGET', KEYS[1], 'run', '.gate', '.waits')
if tree[1] ~= ARGV[1] then
  return 0
end
local others, waited = {}, false
for other in string.gmatch(tree[3] or '', '[^,]+') do
  if other == producer then
    waited = true
  else
    others[#others + 1] = other
  end
end
if not waited then
  return 1
end
-- include: full.lua
if #others == 0 then
  call('HDEL', KEYS[1], '.gate', '.waits')
else
  call('HSET', KEYS[1], '.waits', table.concat(others, ','))
end
return clock(given) < tonumber(tree[2]) and 1 or 2

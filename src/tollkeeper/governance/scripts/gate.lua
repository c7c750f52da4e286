-- After a loss: which producers must send again before anything is admitted under a budget. The twin of Tree.gate.
--
-- KEYS  1 marks:{root}
-- ARGV  1 the server's life that the caller is connected to  2 a new run  3 doubles: now (µs, 0: TIME), grace (µs)
--       then every producer that is neither closed nor at rest; the last is '?' if there may be others
-- Reply {run, until (µs, 0: open), producers waited for, joined by commas}; {} if the tree is cold. In a life that the
--       tree was not in before, a new run begins: its memory may have gone back to an earlier state. A list with '?' takes
--       nobody off those that are waited for; when one without it comes, everybody on that is waited for, if '?' was.
-- include: clock.lua
local server, fresh = ARGV[1], ARGV[2]
local given, grace = read('<dd', ARGV[3])
local tree = call('HMGET', KEYS[1], 'run', '.server', '.gate', '.waits')
if not tree[1] then
  return {}
end
-- include: full.lua
local run, until_us, waits, named = tree[1], tree[3] or '0', {}, {}
for at = 4, #ARGV do
  named[#named + 1] = ARGV[at]
end
if tree[2] ~= server then
  run, until_us = fresh, string.format('%.0f', clock(given) + grace)
  call('HSET', KEYS[1], 'run', run, 'sync', run .. ':1', '.server', server)
  waits = named
else
  local open = {}
  for _, producer in ipairs(named) do
    open[producer] = true
  end
  for producer in string.gmatch(tree[4] or '', '[^,]+') do
    if producer == '?' and not open['?'] then
      waits = named
      break
    end
    if open[producer] or open['?'] then
      waits[#waits + 1] = producer
    end
  end
end
if #waits == 0 then
  call('HDEL', KEYS[1], '.gate', '.waits')
  return {run, '0', ''}
end
local names = table.concat(waits, ',')
call('HSET', KEYS[1], '.gate', until_us, '.waits', names)
return {run, until_us, names}

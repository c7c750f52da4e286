-- After a loss: which producers must send again before anything is admitted under a budget. The twin of Tree.gate.
--
-- KEYS  1 marks:{root}
-- ARGV  1 the server's life that the caller is connected to  2 a new run  3 doubles: now (µs, 0: TIME), grace (µs)
--       then every producer that is neither closed nor at rest
-- Reply {run, until (µs, 0: open), producers waited for, joined by commas}; {} if the tree is cold. In a life that the
--       tree was not in before, a new run begins: its memory may have gone back to an earlier state.
-- include: clock.lua
local server, fresh = ARGV[1], ARGV[2]
local given, grace = read('<dd', ARGV[3])
local tree = call('HMGET', KEYS[1], 'run', '.server', '.gate', '.waits')
if not tree[1] then
  return {}
end
-- include: full.lua
local run, until_us, waits = tree[1], tree[3] or '0', {}
if tree[2] ~= server then
  run, until_us = fresh, string.format('%.0f', clock(given) + grace)
  call('HSET', KEYS[1], 'run', run, 'sync', run .. ':1', '.server', server)
  for i = 4, #ARGV do
    waits[#waits + 1] = ARGV[i]
  end
else
  local open = {}
  for at = 4, #ARGV do
    open[ARGV[at]] = true
  end
  for producer in string.gmatch(tree[4] or '', '[^,]+') do
    if open[producer] then
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

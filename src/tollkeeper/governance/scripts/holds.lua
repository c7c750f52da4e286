-- A hold is `amount LF producer LF counter names LF slot names LF runs`, names joined by commas; runs are two little-endian
-- doubles for each log (generation, index), then four for each bucket (admit.lua tells them in its reply).

-- Calls visit(attempt, amount, producer, counters, slots) for every hold of the tree; names are iterators' texts.
local function each_hold(key, visit)
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local amount, producer, counters, slots = string.match(all[i + 1], '^(%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n')
    visit(all[i], amount, producer, counters, slots)
  end
end

local function each_name(names, visit)
  for name in string.gmatch(names, '[^,]+') do
    visit(name)
  end
end

-- Whether all counters of a hold are counters, or not there. Raises for one of another type.
local function all_counters(prefix, names)
  local all = true
  each_name(names, function(name)
    local raw = call('GET', prefix .. name)
    all = all and (not raw or #raw >= COUNTER_BYTES)
  end)
  return all
end

-- Takes the amount of a hold off its counters, which were checked.
local function release_hold(prefix, names, amount)
  each_name(names, function(name)
    local raw = call('GET', prefix .. name)
    if raw then
      local spent, kept = read('<dd', raw)
      call('SETRANGE', prefix .. name, '0', pack('<dd', spent, kept - amount))
    end
  end)
end

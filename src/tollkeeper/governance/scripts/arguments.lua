-- Arguments are read in order; the first is always the time in Unix µs, 0 for the server's own clock.
local cursor = 0

local function text()
  cursor = cursor + 1
  return ARGV[cursor]
end

local function number()
  cursor = cursor + 1
  return tonumber(ARGV[cursor])
end

local function time_us()
  local given = number()
  if given ~= 0 then
    return given
  end
  local clock = redis.call('TIME')
  return clock[1] * 1000000 + clock[2]
end

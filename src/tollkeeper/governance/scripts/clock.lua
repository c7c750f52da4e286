-- Numbers travel as packed little-endian doubles, one argument for many: exact to 2^53, and read in one step.
-- A time of 0 stands for the server's own clock.
local function clock(given)
  if given ~= 0 then
    return given
  end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

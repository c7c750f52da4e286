-- Every script's first lines. Looked up once, these cost less; and numbers travel as packed little-endian doubles, one
-- argument for many: exact to 2^53, and read in one step. A time of 0 stands for the server's own clock.
local call, pack, read = redis.call, struct.pack, struct.unpack
local function clock(given)
  if given ~= 0 then
    return given
  end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

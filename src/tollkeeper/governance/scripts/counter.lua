-- The spend of one scope in one period, as a packed string: 6 little-endian doubles cost, held (nano-dollars), requests,
-- input, output, cached (tokens), and then the text of the sync generation in which the counter was last flagged as
-- changed. While that is still the tree's generation, the flag stands and need not be set again.
local COUNTER = '<dddddd'
local COUNTER_BYTES = 48
local NOTHING_SPENT = struct.pack(COUNTER, 0, 0, 0, 0, 0, 0)

-- Makes a counter; `expires` µs, 0: never.
local function counter_make(key, packed, expires)
  if expires > 0 then
    redis.call('SET', key, packed, 'PXAT', math.ceil(expires / 1000))
  else
    redis.call('SET', key, packed)
  end
end

-- Adds to what is held by a counter that is there.
local function counter_hold(key, raw, amount)
  local cost, held = struct.unpack('<dd', raw)
  redis.call('SETRANGE', key, '0', struct.pack('<dd', cost, held + amount))
end

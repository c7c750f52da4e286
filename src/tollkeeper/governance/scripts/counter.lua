-- The spend of one scope in one period, as a packed string: 6 little-endian doubles cost, held (nano-dollars), requests,
-- input, output, cached (tokens), and then the text of the sync generation in which the counter was last flagged as
-- changed. While that is still the tree's generation, the flag stands and need not be set again.
local COUNTER = '<dddddd'
local COUNTER_BYTES = 48

-- Makes a counter; `expires` µs, 0: never.
local function counter_make(key, packed, expires)
  if expires > 0 then
    call('SET', key, packed, 'PXAT', math.ceil(expires / 1000))
  else
    call('SET', key, packed)
  end
end

-- Apply one numbered entry of the kind *usage* as use.lua does; but while the idempotency keys that the database remembers
-- are still on their way into this tree (`.keys`, seed.lua), a key that nobody has looked up there may be one of them: then
-- nothing is charged, and the caller looks it up first (looked.lua). The twin of Tree.apply in domain/tree.py.
--
-- KEYS  as use.lua; the last is looked:{root}
-- ARGV  as use.lua
-- Reply as use.lua, or 4 unknown: the key must be looked up.
-- include: clock.lua
local producer, entry = ARGV[2], tonumber(ARGV[4])
-- include: numbered.lua
if call('HEXISTS', KEYS[1], '.keys') == 1 and call('HEXISTS', KEYS[#KEYS], ARGV[3]) == 0 then
  return {4, mark, 0}
end
-- include: use.lua

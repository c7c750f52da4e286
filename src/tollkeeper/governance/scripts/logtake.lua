-- The oldest waiting records, for a caller that wants them itself: the twin of LogQueue.peek and take.
--
-- KEYS  1 <p>state
-- ARGV  1 the most records  2 1: they are gone then, delivered to the caller; 0: they stay
-- Reply producer, number, part and body of each, flat.
-- include: logqueue.lua
local q = queue_open()
local left, remove, reply, index, keys = tonumber(ARGV[1]), ARGV[2] == '1', {}, 0, {}
if remove then
  queue_write_on(q)
end
while left > 0 do
  local e = queue_at(q, index)
  if not e then
    break
  end
  local n, id = math.min(left, e.left), whole(e.id)
  local parts = pieces(q.prefix .. 'part:' .. id, e.count, e.skip, n)
  local bodies = e.bodies > 0 and pieces(q.prefix .. 'body:' .. id, e.count, e.skip, n)
  local part_bytes, body_bytes = 0, 0
  for i = 1, n do
    local body = bodies and bodies[i] or ''
    part_bytes, body_bytes = part_bytes + #parts[i], body_bytes + #body
    local at = #reply
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] =
      e.producer, whole(e.first + e.skip + i - 1), parts[i], body
  end
  left = left - n
  if remove then
    gap_add(q, 'taken', e.producer, e.first + e.skip, e.first + e.skip + n - 1)
    local gone = queue_remove(q, e, n, part_bytes, body_bytes)
    if gone then
      chunk_keys(q, keys, gone)
    end
  else
    index = index + 1
  end
end
if remove then
  release(keys)
  queue_save(q)
end
return reply

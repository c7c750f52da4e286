-- Lease a batch: the twin of LogQueue.lease in domain/log_queue.py.
--
-- KEYS  1 <p>state
-- ARGV  1 doubles: now (µs, 0: TIME), the most records, the most bytes, how long it is held (µs), records, bytes and age (µs)
--         of which one makes a new lease due, the most records and the most bytes the queue keeps
-- Reply {} if there is none, else {run, number, 1 if it was taken over or 0, packed header and gaps, then the chunks}.
-- include: clock.lua
-- include: logqueue.lua
local given, count, bytes, hold, due_count, due_bytes, due_age, records_max, bytes_max =
  struct.unpack('<ddddddddd', ARGV[1])
local now = clock(given)
local q = queue_open()
local leases = q.prefix .. 'leases'

local function answer(number, taken_over)
  redis.call('ZADD', leases, whole(now + hold), number)
  local reply = redis.call('LRANGE', q.prefix .. 'lease:' .. number, 0, -1)
  table.insert(reply, 1, taken_over)
  table.insert(reply, 1, number)
  table.insert(reply, 1, q.run)
  return reply
end

queue_write_on(q)
local expired = redis.call('ZRANGEBYSCORE', leases, '-inf', whole(now), 'LIMIT', 0, 1)
if expired[1] then
  return answer(expired[1], 1)
end
local head, gaps = q.count > 0 and queue_at(q, 0), q.prefix .. 'gaps'
local due = q.count >= due_count or q.bytes >= due_bytes or head and head.stamp + due_age <= now
if not head then
  due = redis.call('HLEN', gaps) > 0
end
if not due then
  return {}
end
if q.leased > 0 and (q.leased * 2 >= records_max or q.leased_bytes * 2 >= bytes_max) then
  return {}
end

-- A copy of the first `n` records of a chunk, as a chunk of its own.
local function copy(e, n, parts, bodies)
  local made = {id = q.next_chunk, first = e.first + e.skip, count = n, skip = 0, parts = parts, bodies = bodies,
    stamp = e.stamp, producer = e.producer}
  q.next_chunk = q.next_chunk + 1
  for kind, size in pairs({part = parts, body = bodies}) do
    if kind == 'part' or size > 0 then
      local found, packed = pieces(q.prefix .. kind .. ':' .. whole(e.id), e.count, e.skip, n), {}
      for i = 1, n do
        packed[i] = struct.pack('<I4', #found[i])
      end
      redis.call('SET', q.prefix .. kind .. ':' .. whole(made.id), table.concat(packed) .. table.concat(found))
    end
  end
  return made
end

local number = whole(q.next_lease)
local key, taken, taken_bytes, chunks = q.prefix .. 'lease:' .. number, 0, 0, {}
while q.count > 0 and taken < count and #chunks < LEASE_CHUNKS_MAX do
  local e = queue_at(q, 0)
  local n, part_bytes, body_bytes = e.left, e.parts, e.bodies
  if taken + n > count or taken_bytes + e.bytes > bytes then
    local parts, bodies = sizes(q, e)
    n, part_bytes, body_bytes = 0, 0, 0
    while taken + n < count and n < e.left do
      local part, body = parts[n + 1], bodies and bodies[n + 1] or 0
      if taken_bytes + part_bytes + body_bytes + part + body > bytes and (#chunks > 0 or n > 0) then
        break
      end
      n, part_bytes, body_bytes = n + 1, part_bytes + part, body_bytes + body
    end
  end
  if n == 0 then
    break
  end
  chunks[#chunks + 1] = entry_pack(n < e.left and copy(e, n, part_bytes, body_bytes) or e)
  queue_remove(q, e, n, part_bytes, body_bytes)
  taken, taken_bytes = taken + n, taken_bytes + part_bytes + body_bytes
  if taken_bytes >= bytes then
    break
  end
end

local told = {struct.pack(LEASE, taken, taken_bytes, head and head.stamp or 0)}
local all = redis.call('HGETALL', gaps)
for i = 1, #all, 2 do
  told[#told + 1] = all[i] .. '=' .. all[i + 1] .. ';'
end
redis.call('DEL', gaps)
redis.call('RPUSH', key, table.concat(told))
for i = 1, #chunks, ARGUMENTS_MAX do
  redis.call('RPUSH', key, unpack(chunks, i, math.min(#chunks, i + ARGUMENTS_MAX - 1)))
end
q.next_lease, q.leased, q.leased_bytes = q.next_lease + 1, q.leased + taken, q.leased_bytes + taken_bytes
queue_save(q)
return answer(number, 0)

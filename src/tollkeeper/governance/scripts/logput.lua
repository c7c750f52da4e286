-- Bring a chunk of records to a queue: the twin of LogQueue.put in domain/log_queue.py.
--
-- KEYS  1 <p>state (logqueue.lua tells all keys)
-- ARGV  1 doubles: now (µs, 0: TIME), first number, records, bytes of their parts, bytes of their bodies, the most records and
--         the most bytes the queue keeps
--       2 producer  3 run, if the queue has none  4 packed parts  5 packed bodies ('': none)
-- Reply {records and bytes kept now, leased ones included, records dropped and records shed by this call}.
-- include: clock.lua
-- include: logqueue.lua
local given, first, count, parts, bodies, records_max, bytes_max = struct.unpack('<ddddddd', ARGV[1])
local producer, now = ARGV[2], clock(given)
local q = queue_open(ARGV[3])
local mark, dropped, shed = mark_of(q, producer, now), q.dropped, q.shed
local e = {id = q.next_chunk, first = first, count = count, parts = parts, bodies = bodies, stamp = now,
  producer = producer, skip = math.min(count, math.max(0, mark - first + 1))}
q.repeated = q.repeated + e.skip
if e.skip < count then
  mark_set(q, producer, first + count - 1, now)
  q.next_chunk = q.next_chunk + 1
  redis.call('SET', q.prefix .. 'part:' .. whole(e.id), ARGV[4])
  if bodies > 0 then
    redis.call('SET', q.prefix .. 'body:' .. whole(e.id), ARGV[5])
  end
  if e.skip > 0 then
    e.left = e.skip
    e.skip = 0
    local repeated_parts, repeated_bodies = sizes(q, e)
    for i = 1, e.left do
      e.parts = e.parts - repeated_parts[i]
      e.bodies = e.bodies - (repeated_bodies and repeated_bodies[i] or 0)
    end
    e.skip = e.left
  end
  redis.call('RPUSH', q.prefix .. 'queue', entry_pack(e))
  q.count, q.bytes, q.body_bytes = q.count + count - e.skip, q.bytes + e.parts + e.bodies, q.body_bytes + e.bodies
  local over = q.bytes + q.leased_bytes - bytes_max
  while over > 0 and q.body_bytes > 0 do
    over = over - shed_next(q)
  end
  queue_drop(q, q.count + q.leased - records_max, over)
end
queue_save(q)
return {q.count + q.leased, q.bytes + q.leased_bytes, q.dropped - dropped, q.shed - shed}

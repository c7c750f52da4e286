-- A batch is delivered: the twin of LogQueue.ack in domain/log_queue.py.
--
-- KEYS  1 <p>state
-- ARGV  1 run  2 number of the lease
-- Reply 1, or 0: it is not leased any more.
-- include: logqueue.lua
local q = queue_open()
if q.run ~= ARGV[1] or redis.call('ZREM', q.prefix .. 'leases', ARGV[2]) == 0 then
  return 0
end
local key, keys = q.prefix .. 'lease:' .. ARGV[2], {}
local chunks = redis.call('LRANGE', key, 0, -1)
for i = 2, #chunks do
  chunk_keys(q, keys, entry_unpack(chunks[i]).id)
end
keys[#keys + 1] = key
release(keys)
local count, bytes = struct.unpack(LEASE, chunks[1])
q.leased, q.leased_bytes, q.delivered = q.leased - count, q.leased_bytes - bytes, q.delivered + count
queue_save(q)
return 1

-- A queue of log records: the twin of domain/log_queue.py, which tells the rules.
--
-- <p> is `logs:{<shard>}:`, and all keys are made of it, so a queue is one slot on a cluster.
--   <p>state       string: packed counts (STATE below), then the run
--   <p>queue       list of chunks that wait, oldest first: packed (ENTRY below), then the producer
--   <p>part:<id>   string, one per chunk: the length of each part (4 bytes each), then the parts
--   <p>body:<id>   the same of bodies; absent if there are none, or they were shed
--   <p>marks       hash: producer → <last number>:<when it moved, µs>
--   <p>gaps        hash: <kind>:<producer> → <first>-<last>,…
--   <p>leases      sorted set: number of the lease → its end (µs)
--   <p>lease:<n>   list: packed (LEASE below) and the gaps, then the chunks
-- Records are never moved, and read by scripts only where a chunk is cut: a lease of megabytes moves a few dozen bytes
-- a chunk, and what is let go is freed in the background.
local STATE = '<ddddddddddddddd'
local STATE_BYTES = 120
local ENTRY = '<I6I6I4I4I5I5I7'
local ENTRY_BYTES = 37
local LEASE = '<ddd'
local LEASE_CHUNKS_MAX = 1000
local PRODUCERS_MAX = 1000
local MARK_TTL_US = 604800000000
local GAP_FIELDS_MAX = 1000
local GAP_TEXT_MAX = 4000
local ARGUMENTS_MAX = 500

local function whole(number)
  return string.format('%.0f', number)
end

local function queue_open(run)
  local q = {prefix = string.sub(KEYS[1], 1, -6), run = run or ''}
  q.next_lease, q.next_chunk, q.count, q.bytes, q.body_bytes, q.bare = 1, 1, 0, 0, 0, 0
  q.leased, q.leased_bytes, q.delivered, q.taken, q.dropped, q.lost = 0, 0, 0, 0, 0, 0
  q.repeated, q.shed, q.unlisted = 0, 0, 0
  local state = redis.call('GET', KEYS[1])
  if state then
    q.next_lease, q.next_chunk, q.count, q.bytes, q.body_bytes, q.bare, q.leased, q.leased_bytes,
      q.delivered, q.taken, q.dropped, q.lost, q.repeated, q.shed, q.unlisted = struct.unpack(STATE, state)
    if #state > STATE_BYTES then
      q.run = string.sub(state, STATE_BYTES + 1)
    end
  end
  return q
end

local function queue_save(q)
  redis.call('SET', KEYS[1], struct.pack(STATE, q.next_lease, q.next_chunk, q.count, q.bytes, q.body_bytes, q.bare,
    q.leased, q.leased_bytes, q.delivered, q.taken, q.dropped, q.lost, q.repeated, q.shed, q.unlisted) .. q.run)
end

-- What takes records out goes on though Redis' memory is full, which is how memory comes back: a script that has written
-- may write on, and to remove a field that nobody has is a write that needs no memory.
local function queue_write_on(q)
  redis.call('HDEL', q.prefix .. 'gaps', '')
end

local function entry_pack(e)
  return struct.pack(ENTRY, e.id, e.first, e.count, e.skip, e.parts, e.bodies, e.stamp) .. e.producer
end

local function entry_unpack(text)
  local e = {producer = string.sub(text, ENTRY_BYTES + 1)}
  e.id, e.first, e.count, e.skip, e.parts, e.bodies, e.stamp = struct.unpack(ENTRY, text)
  e.left, e.bytes = e.count - e.skip, e.parts + e.bodies
  return e
end

local function queue_at(q, index)
  local text = redis.call('LINDEX', q.prefix .. 'queue', index)
  return text and entry_unpack(text)
end

-- The lengths of `count` parts or bodies of a chunk from `start` (0: the first) on.
local function lengths(key, start, count)
  local packed, found = redis.call('GETRANGE', key, 4 * start, 4 * (start + count) - 1), {}
  for i = 1, count do
    found[i] = struct.unpack('<I4', packed, 4 * i - 3)
  end
  return found
end

-- Part and body lengths of what is left in a chunk.
local function sizes(q, e)
  local parts = lengths(q.prefix .. 'part:' .. whole(e.id), e.skip, e.left)
  return parts, e.bodies > 0 and lengths(q.prefix .. 'body:' .. whole(e.id), e.skip, e.left)
end

-- `count` parts (or bodies) of a chunk of `all` from `start` on, as strings.
local function pieces(key, all, start, count)
  local before, at, found = lengths(key, 0, start + count), 4 * all, {}
  for i = 1, start do
    at = at + before[i]
  end
  for i = 1, count do
    local length = before[start + i]
    found[i] = length > 0 and redis.call('GETRANGE', key, at, at + length - 1) or ''
    at = at + length
  end
  return found
end

local function release(keys)
  for i = 1, #keys, ARGUMENTS_MAX do
    redis.call('UNLINK', unpack(keys, i, math.min(#keys, i + ARGUMENTS_MAX - 1)))
  end
end

-- Lets go of the first `count` records of the head chunk `e`: `parts` and `bodies` bytes. A whole chunk is only taken
-- off the list; its id is returned, for the caller to free or to keep.
local function queue_remove(q, e, count, parts, bodies)
  q.count, q.bytes, q.body_bytes = q.count - count, q.bytes - parts - bodies, q.body_bytes - bodies
  if count == e.left then
    redis.call('LPOP', q.prefix .. 'queue')
    q.bare = math.max(0, q.bare - 1)
    return e.id
  end
  e.skip, e.parts, e.bodies = e.skip + count, e.parts - parts, e.bodies - bodies
  redis.call('LSET', q.prefix .. 'queue', 0, entry_pack(e))
end

local function chunk_keys(q, keys, id)
  keys[#keys + 1] = q.prefix .. 'part:' .. whole(id)
  keys[#keys + 1] = q.prefix .. 'body:' .. whole(id)
end

local function gap_add(q, kind, producer, first, last)
  q[kind] = q[kind] + last - first + 1
  local key, field = q.prefix .. 'gaps', kind .. ':' .. producer
  local text = redis.call('HGET', key, field)
  if not text then
    if redis.call('HLEN', key) >= GAP_FIELDS_MAX then
      q.unlisted = q.unlisted + last - first + 1
      return
    end
    redis.call('HSET', key, field, whole(first) .. '-' .. whole(last))
    return
  end
  local head, newest = string.match(text, '^(.-)(%d+)$')
  if tonumber(newest) == first - 1 then
    redis.call('HSET', key, field, head .. whole(last))
  elseif #text > GAP_TEXT_MAX then
    q.unlisted = q.unlisted + last - first + 1
  else
    redis.call('HSET', key, field, text .. ',' .. whole(first) .. '-' .. whole(last))
  end
end

-- The bodies of the next chunk that may have some; how many bytes they were.
local function shed_next(q)
  local e = queue_at(q, q.bare)
  local freed = e.bodies
  if freed > 0 then
    q.shed, q.bytes, q.body_bytes = q.shed + e.left, q.bytes - freed, q.body_bytes - freed
    e.bodies = 0
    redis.call('LSET', q.prefix .. 'queue', q.bare, entry_pack(e))
    redis.call('UNLINK', q.prefix .. 'body:' .. whole(e.id))
  end
  q.bare = q.bare + 1
  return freed
end

-- Drops the oldest until so many records and bytes are gone, or nothing waits.
local function queue_drop(q, records, bytes)
  local keys = {}
  while (records > 0 or bytes > 0) and q.count > 0 do
    local e = queue_at(q, 0)
    local dropped, part_bytes, body_bytes = e.left, e.parts, e.bodies
    if records < dropped and bytes < e.bytes then
      local parts, bodies = sizes(q, e)
      dropped, part_bytes, body_bytes = 0, 0, 0
      while dropped < records or part_bytes + body_bytes < bytes do
        dropped = dropped + 1
        part_bytes, body_bytes = part_bytes + parts[dropped], body_bytes + (bodies and bodies[dropped] or 0)
      end
    end
    records, bytes = records - dropped, bytes - part_bytes - body_bytes
    gap_add(q, 'dropped', e.producer, e.first + e.skip, e.first + e.skip + dropped - 1)
    local id = queue_remove(q, e, dropped, part_bytes, body_bytes)
    if id then
      chunk_keys(q, keys, id)
    end
  end
  release(keys)
end

-- The producer's mark. A new producer makes the queue forget those that were silent for a week, if they are many.
local function mark_of(q, producer, now)
  local key = q.prefix .. 'marks'
  local mark = redis.call('HGET', key, producer)
  if mark then
    return tonumber(string.match(mark, '^%d+'))
  end
  if redis.call('HLEN', key) >= PRODUCERS_MAX then
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
      if tonumber(string.match(all[i + 1], '%d+$')) <= now - MARK_TTL_US then
        redis.call('HDEL', key, all[i])
      end
    end
  end
  return 0
end

local function mark_set(q, producer, number, now)
  redis.call('HSET', q.prefix .. 'marks', producer, whole(number) .. ':' .. whole(now))
end

-- What settlement does with a log of window.lua: adds to a run that is still in it; one that has left changes nothing.
-- The newest 16 runs are read and written in one go with the trailer; an older one by itself.
local function log_correct(key, generation, index, requests, tokens)
  local raw = redis.call('GETRANGE', key, '-368', '-1')
  if raw == '' then
    return
  end
  local near = #raw - TRAILER_BYTES -- bytes of runs that were read
  local made, offset, first, head, tail, all_requests, all_tokens, last, last_requests, last_tokens, oldest, expires =
    struct.unpack(TRAILER, raw, near + 1)
  if made ~= generation or index < head or index >= tail then
    return
  end
  local at = (index - first) * RUN_BYTES
  local back = (tail - index) * RUN_BYTES -- from the beginning of the run to the trailer
  local run = back <= near and string.sub(raw, near - back + 1, near) or redis.call('GETRANGE', key, at, at + RUN_BYTES - 1)
  local stamp, had_requests, had_tokens = struct.unpack(RUN, run)
  requests = math.min(math.max(requests, -had_requests), WEIGHT_MAX - had_requests)
  tokens = math.min(math.max(tokens, -had_tokens), WEIGHT_MAX - had_tokens)
  if index == tail - 1 then
    last_requests, last_tokens = last_requests + requests, last_tokens + tokens
  end
  local corrected = struct.pack(RUN, stamp, had_requests + requests, had_tokens + tokens)
  local trailer = struct.pack(TRAILER, made, offset, first, head, tail, all_requests + requests, all_tokens + tokens, last,
    last_requests, last_tokens, oldest, expires)
  if back <= near then
    redis.call('SETRANGE', key, at, corrected .. string.sub(run, RUN_BYTES + 1) .. trailer)
  else
    redis.call('SETRANGE', key, at, corrected)
    redis.call('SETRANGE', key, (tail - first) * RUN_BYTES, trailer)
  end
end

-- What settlement does with a log of window.lua: adds to a run that is still in it; one that has left changes nothing.
local function log_correct(key, generation, index, requests, tokens)
  local raw = redis.call('GETRANGE', key, 0, HEADER_BYTES - 1)
  if #raw == 0 then
    return
  end
  local made, offset, first, head, tail, all_requests, all_tokens, last, last_requests, last_tokens, oldest, expires =
    struct.unpack(HEADER, raw)
  if made ~= generation or index < head or index >= tail then
    return
  end
  local at = HEADER_BYTES + (index - first) * RUN_BYTES
  local stamp, had_requests, had_tokens = struct.unpack(RUN, redis.call('GETRANGE', key, at, at + RUN_BYTES - 1))
  requests = math.min(math.max(requests, -had_requests), WEIGHT_MAX - had_requests)
  tokens = math.min(math.max(tokens, -had_tokens), WEIGHT_MAX - had_tokens)
  if index == tail - 1 then
    last_requests, last_tokens = last_requests + requests, last_tokens + tokens
  end
  redis.call('SETRANGE', key, at, struct.pack(RUN, stamp, had_requests + requests, had_tokens + tokens))
  redis.call('SETRANGE', key, 0, struct.pack(HEADER, made, offset, first, head, tail, all_requests + requests,
    all_tokens + tokens, last, last_requests, last_tokens, oldest, expires))
end

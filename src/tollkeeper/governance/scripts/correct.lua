-- What settlement does with a log of window.lua: adds to a run that is still in it; one that has left changes nothing.
-- The newest 16 runs are read and written in one go with the trailer; an older one by itself.
local function log_correct(key, generation, index, requests, tokens)
  local raw = call('GETRANGE', key, '-368', '-1')
  if raw == '' then
    return
  end
  local near = #raw - TRAILER_BYTES -- bytes of runs that were read
  local made, offset, first, head, tail, all_requests, all_tokens, last, last_requests, last_tokens, oldest, expires =
    read(TRAILER, raw, near + 1)
  if made ~= generation or index < head or index >= tail then
    return
  end
  local at = (index - first) * RUN_BYTES
  local back = (tail - index) * RUN_BYTES -- from the beginning of the run to the trailer
  local runs, from = raw, near - back + 1
  if back > near then
    runs, from = call('GETRANGE', key, at, at + RUN_BYTES - 1), 1
  end
  local stamp, had_requests, had_tokens = read(RUN, runs, from)
  requests = math.min(math.max(requests, -had_requests), WEIGHT_MAX - had_requests)
  tokens = math.min(math.max(tokens, -had_tokens), WEIGHT_MAX - had_tokens)
  if index == tail - 1 then
    last_requests, last_tokens = last_requests + requests, last_tokens + tokens
  end
  local corrected = pack(RUN, stamp, had_requests + requests, had_tokens + tokens)
  local trailer = pack(TRAILER, made, offset, first, head, tail, all_requests + requests, all_tokens + tokens, last,
    last_requests, last_tokens, oldest, expires)
  if back <= near then
    call('SETRANGE', key, at, corrected .. string.sub(raw, from + RUN_BYTES, near) .. trailer)
  else
    call('SETRANGE', key, at, corrected)
    call('SETRANGE', key, (tail - first) * RUN_BYTES, trailer)
  end
end

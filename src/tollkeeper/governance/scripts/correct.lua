-- What settlement does with a log of window.lua: adds to a run that is still in it; one that has left changes nothing.
--
-- Redis has Lua hash every byte of every string, so that long ones cost more than calls: the newest run and the trailer
-- up to its weights are read together, 113 bytes without the last 16, and only what changes is written.
local WEIGHTS = 40 -- bytes of the trailer before its sums
local function log_correct(key, generation, index, requests, tokens)
  local raw = call('GETRANGE', key, '-113', '-17')
  if raw == '' then
    return
  end
  local trailer = #raw - 79 -- where it begins: there may be no run before it
  local made, _, first, head, tail, all_requests, all_tokens, last, last_requests, last_tokens =
    read('<dddddddddd', raw, trailer)
  if made ~= generation or index < head or index >= tail then
    return
  end
  local newest, at = index == tail - 1, (index - first) * RUN_BYTES
  local stamp, had_requests, had_tokens =
    read(RUN, newest and raw or call('GETRANGE', key, at, at + RUN_BYTES - 1))
  requests = math.min(math.max(requests, -had_requests), WEIGHT_MAX - had_requests)
  tokens = math.min(math.max(tokens, -had_tokens), WEIGHT_MAX - had_tokens)
  local run = pack(RUN, stamp, had_requests + requests, had_tokens + tokens)
  local sums = pack('<dd', all_requests + requests, all_tokens + tokens)
  if newest then
    local its = pack('<ddd', last, last_requests + requests, last_tokens + tokens)
    call('SETRANGE', key, at, run .. string.sub(raw, trailer, trailer + WEIGHTS - 1) .. sums .. its)
  else
    call('SETRANGE', key, at, run)
    call('SETRANGE', key, (tail - first) * RUN_BYTES + WEIGHTS, sums)
  end
end

-- What correct.lua does, for several runs of one log of window.lua: its trailer is read once and written once.
local SUMS = 40 -- bytes of the trailer before its sums

local function log_open(key)
  local raw = call('GETRANGE', key, '-96', '-17')
  if raw == '' then
    return false
  end
  local log = {key = key}
  log.made, log.offset, log.first, log.head, log.tail, log.requests, log.tokens, log.last, log.last_requests, log.last_tokens =
    read('<dddddddddd', raw)
  return log
end

local function log_amend(log, generation, index, requests, tokens)
  if log.made ~= generation or index < log.head or index >= log.tail then
    return
  end
  local at = (index - log.first) * RUN_BYTES
  local stamp, had_requests, had_tokens = read(RUN, call('GETRANGE', log.key, at, at + RUN_BYTES - 1))
  requests = math.min(math.max(requests, -had_requests), WEIGHT_MAX - had_requests)
  tokens = math.min(math.max(tokens, -had_tokens), WEIGHT_MAX - had_tokens)
  call('SETRANGE', log.key, at, pack(RUN, stamp, had_requests + requests, had_tokens + tokens))
  log.requests, log.tokens = log.requests + requests, log.tokens + tokens
  if index == log.tail - 1 then
    log.last_requests, log.last_tokens = log.last_requests + requests, log.last_tokens + tokens
  end
  log.amended = true
end

local function log_close(log)
  if log.amended then
    local sums = pack('<ddddd', log.requests, log.tokens, log.last, log.last_requests, log.last_tokens)
    call('SETRANGE', log.key, (log.tail - log.first) * RUN_BYTES + SUMS, sums)
  end
end

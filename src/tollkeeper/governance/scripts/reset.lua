-- Empty windows, fill buckets and free slots; money is untouched. The twin of Tree.reset.
--
-- KEYS  logs, then buckets and slot sets
-- ARGV  number of logs
-- Indexes of a log go on, so that late corrections of old runs find nothing. Reply the number of logs emptied.
-- include: clock.lua
-- include: window.lua
local emptied = 0
for i, key in ipairs(KEYS) do
  if i > tonumber(ARGV[1]) then
    call('DEL', key)
  else
    local raw = call('GETRANGE', key, '-96', '-1')
    if raw ~= '' then
      local generation, offset, first, _, tail, _, _, last, last_requests, last_tokens, oldest, expires = read(TRAILER, raw)
      local trailer =
        pack(TRAILER, generation, offset, first, tail, tail, 0, 0, last, last_requests, last_tokens, oldest, expires)
      call('SETRANGE', key, (tail - first) * RUN_BYTES, trailer)
      emptied = emptied + 1
    end
  end
end
return emptied

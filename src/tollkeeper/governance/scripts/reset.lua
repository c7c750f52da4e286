-- Empty windows and free slots; money is untouched. The twin of Tree.reset.
--
-- KEYS  logs, then slot sets
-- ARGV  number of logs
-- Indexes of a log go on, so that late corrections of old runs find nothing. Reply the number of logs emptied.
-- include: window.lua
local emptied = 0
for i = 1, #KEYS do
  if i > tonumber(ARGV[1]) then
    redis.call('DEL', KEYS[i])
  else
    local log = log_open(KEYS[i], 0, 0, 0)
    if not log.fresh then
      log.head, log.requests, log.tokens = log.tail, 0, 0
      redis.call('SETRANGE', log.key, log_position(log, log.tail), log_trailer(log))
      emptied = emptied + 1
    end
  end
end
return emptied

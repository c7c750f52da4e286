-- Hold again what a producer still has in flight, after a loss. The twin of Tree.reassert, for one attempt.
--
-- KEYS  1 marks:{root}  2 hold:{root}  then its counters
-- ARGV  attempt, amount (nano-dollars), the hold as admit writes it; then per counter its expiry (µs, 0: never)
-- Reply 1 held, 0 it was held or the tree is cold.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[3]) == 0 then
  return 0
end
for i = 3, #KEYS do
  local new = redis.call('EXISTS', KEYS[i]) == 0
  redis.call('HINCRBY', KEYS[i], 'held', ARGV[2])
  local expires = tonumber(ARGV[1 + i])
  if new and expires > 0 then
    redis.call('PEXPIREAT', KEYS[i], math.ceil(expires / 1000))
  end
end
return 1

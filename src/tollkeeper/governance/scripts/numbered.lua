-- Whether a numbered entry is its producer's next, which a script that applies one asks first. KEYS[1] is marks:{root};
-- `producer` and `entry`, its number, are there. What comes behind this has `sync`, the generation in which counters are
-- flagged now, and `mark`, the number of the last entry applied; otherwise the script ends here.
local tree = call('HMGET', KEYS[1], 'sync', producer)
local sync, mark = tree[1], tonumber(tree[2] or 0)
if not sync then
  return {2, 0, 0}
end
if entry <= mark then
  return {0, mark, 0}
end
if entry ~= mark + 1 then
  return {1, mark, 0}
end

-- Money goes on though Redis' memory is full: a script that has written may write on, and to remove a field that nobody
-- has is a write that needs no memory. KEYS[1] is a hash. Admission does not do this: a full Redis admits nothing.
redis.call('HDEL', KEYS[1], '')

-- The exact sliding window on a packed string: the twin of domain/windows.py. This part is its form; what admission and
-- settlement do with it is in sliding.lua and correct.lua.
--
-- A log is one Redis string: runs of 17 bytes, the oldest first, then a trailer of 12 little-endian doubles. The trailer
-- comes last because what is asked for most, the newest runs and the sums, then lies together: one read, one write. Run
-- i lies at (i - first) * RUN_BYTES. A run's stamp is stored less `offset`, so that all stamps move at once when the
-- clock was set back. Fields of the trailer, in order:
--   generation  µs, when the log was made; a correction of a run of another generation does nothing
--   offset      µs, added to every stored stamp
--   first       index of the first run that is physically there
--   head, tail  indexes: runs head .. tail-1 are in the window
--   requests, tokens            sums over the window
--   last, last_requests, last_tokens   the newest run (last: its stamp, offset added)
--   oldest      the stored stamp of run `head`
--   expires     µs, when the key expires as last told to Redis
local TRAILER = '<dddddddddddd'

local RUN = '<I7I5I5'
local RUN_BYTES = 17
local WEIGHT_MAX = 1099511627775 -- what 5 bytes hold; a run that would get more keeps this much

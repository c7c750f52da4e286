-- Marks: per producer the last number applied, and that of a buried producer plus BURIED. Fields that begin with a dot
-- are not producers. The twin of included and covers in domain/entries.py.
local BURIED = 4503599627370496

local function included(mark)
  return mark >= BURIED and mark - BURIED or mark
end

-- Whether `here` has every entry that `mark` has: a burial at 7 has no entry 8.
local function covers(here, mark)
  return included(here) >= included(mark) and (mark < BURIED or here >= BURIED)
end

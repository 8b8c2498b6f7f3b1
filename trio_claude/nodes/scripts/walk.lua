-- Gives `take` the entries of a run's history between two ids, in order, until it says that it has enough. Redis copies
-- what it reads, and nothing before a part says how large it is: few are read at a time.
local STEP = 4
local function walk(lines, from, upto, take)
  repeat
    local entries = redis.call('XRANGE', lines, from, upto, 'COUNT', STEP)
    for _, entry in ipairs(entries) do
      if take(entry) then return end
      from = '(' .. entry[1]
    end
  until #entries < STEP
end

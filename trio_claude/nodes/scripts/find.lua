-- Looks at some runs, newest first. ARGV: prefix, whose (with a = in front; empty: everybody's), since, until (empty: no
-- bound), the run and its start behind which to look (empty: none; the start empty: the run must be there), how many to
-- look at, how many to answer at most, how many conditions, each with a field and its value, and the fields asked for.
-- Answers the run that was looked at last, its start (both empty: there are no more), and of each that fits its id and the
-- fields.
local prefix, whose, since, till, last, start = unpack(ARGV, 1, 6)
local look, most, conditions = ARGV[7] + 0, ARGV[8] + 0, ARGV[9] + 0
local runs = prefix .. ':runs' .. (whose == '' and '' or ':' .. string.sub(whose, 2))
local rank = 0
if last ~= '' then
  rank = redis.call('ZREVRANK', runs, last)
  if rank then
    rank = rank + 1
  elseif start == '' then
    return {'', '', {}}
  else
    rank = redis.call('ZCOUNT', runs, '(' .. start, '+inf')
  end
end
if till ~= '' then rank = math.max(rank, redis.call('ZCOUNT', runs, till, '+inf')) end
local names, fields = {}, {}
for place = 10, 9 + 2 * conditions, 2 do names[#names + 1] = ARGV[place] end
for place = 10 + 2 * conditions, #ARGV do fields[#fields + 1] = ARGV[place] end

local function fits(key)
  if conditions == 0 then return true end
  for place, value in ipairs(redis.call('HMGET', key, unpack(names))) do
    if value ~= ARGV[9 + 2 * place] then return false end
  end
  return true
end

local found = redis.call('ZREVRANGE', runs, rank, rank + look - 1, 'WITHSCORES')
local answer, fitting = {'', ''}, {}
if #found == 2 * look then answer = {found[#found - 1], found[#found]} end
for place = 1, #found, 2 do
  local run, begun = found[place], found[place + 1]
  if since ~= '' and tonumber(begun) < tonumber(since) then
    answer[1], answer[2] = '', ''
    break
  end
  local key = prefix .. ':run:' .. run
  if redis.call('HEXISTS', key, 'state') == 1 and fits(key) then
    fitting[#fitting + 1] = {run, unpack(redis.call('HMGET', key, unpack(fields)))}
    if #fitting == most then
      if place + 1 < #found then answer[1], answer[2] = run, begun end
      break
    end
  end
end
answer[3] = fitting
return answer

-- A page of a run's history. ARGV: prefix, run, the line and the number of the part behind which it begins, and bytes
-- after which it ends. Answers kind, first, count, number and data of each part.
--: use walk
local lines, after, beyond, most = ARGV[1] .. ':lines:' .. ARGV[2], ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0
local LAST = '18446744073709551615'
local found, size = {}, 0

local function first_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

local function number_of(entry)
  return tonumber(entry[2][6])
end

local function take(entry)
  local told = entry[2]
  found[#found + 1] = {tonumber(told[2]), first_of(entry), tonumber(told[4]), tonumber(told[6]), told[8]}
  size = size + #told[8]
end

-- The first part at or behind an id, nil where there is none.
local function at(id)
  local entry = redis.call('XRANGE', lines, id, '(' .. LAST .. '-0', 'COUNT', 1)[1]
  return entry
end

-- The part that holds the line `after`, where it holds a line behind it too.
if after > 0 then
  local entry = redis.call('XREVRANGE', lines, after .. '-0', '-', 'COUNT', 1)[1]
  if entry and entry[2][2] == '0' and first_of(entry) + entry[2][4] - 1 > after and number_of(entry) > beyond then
    take(entry)
  end
end
local from = after .. '-1'
local entry = beyond > 0 and at(from)
if entry and number_of(entry) < beyond then
  -- Parts are in the order of their numbers: halve the lines among which the part `beyond` lies.
  local low, high = after, first_of(redis.call('XREVRANGE', lines, '(' .. LAST .. '-0', '-', 'COUNT', 1)[1])
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if number_of(at(middle .. '-0')) <= beyond then low = middle else high = middle - 1 end
  end
  if low > after then from = low .. '-0' end
end
if size < most then
  walk(lines, from, '(' .. LAST .. '-0', function(one)
    if number_of(one) > beyond then take(one) end
    return size >= most
  end)
end
return found

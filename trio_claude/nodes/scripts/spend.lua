-- Add what runs of a node have used to the sums of the day, once: what has a number that is told already is told again.
-- ARGV: prefix, node, token, visit, number, and for each name: name, tokens, millionths of a dollar
--: use now
--: use spent
local prefix, node, visit, number = ARGV[1], ARGV[2], ARGV[4], tonumber(ARGV[5])
local desk = prefix .. ':desk:' .. node
local found = redis.call('HMGET', desk, 'visit', 'told')
if found[1] ~= visit then return {'late'} end  -- also a node that was declared lost tells what it has used

local key, is_new, sums = spent_key(prefix), number > (tonumber(found[2]) or 0), {}
for first = 6, #ARGV, 3 do
  local name, tokens, dollars = ARGV[first], 0, 0
  if is_new then
    tokens, dollars = spend(key, name, tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2]))
  else
    tokens, dollars = spent(key, name)
  end
  sums[#sums + 1], sums[#sums + 2] = tokens, dollars
end
if is_new then
  redis.call('HSET', desk, 'told', number)
  redis.call('EXPIRE', key, KEPT)
end
return {'ok', now(), unpack(sums)}

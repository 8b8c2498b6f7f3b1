-- A node has a new connection: what it holds is made what it says, and what comes late by an older one is refused.
-- ARGV: prefix, node, token, visit, and entries, each with `have` before it, or `keep` where it may be there or not
--: use now
--: use members
--: use held
local prefix, node, token, visit = unpack(ARGV, 1, 4)
local desk = prefix .. ':desk:' .. node
if token_of(prefix, node) ~= tonumber(token) then return {'lost'} end
local found = redis.call('HMGET', desk, 'visit', 'told')
if tonumber(visit) <= (tonumber(found[1]) or 0) then return {'late'} end

local wanted = {}
for number = 5, #ARGV, 2 do
  wanted[ARGV[number + 1]] = ARGV[number]
end
for _, entry in ipairs(redis.call('SMEMBERS', prefix .. ':held:' .. node)) do
  if not wanted[entry] then drop(prefix, node, entry) end
end
for entry, how in pairs(wanted) do
  local kind, owner, key = string.match(entry, '^(%a+)|([^|]+)|(.*)$')
  if how == 'have' and kind == 'running' then
    redis.call('SADD', key, owner)
    note(prefix, node, kind, owner, key)
  elseif how == 'have' then
    local holder = redis.call('GET', key)
    if not holder or not lives(prefix, holder) then redis.call('SET', key, owner) end
    note(prefix, node, kind, owner, key)
  end
end
redis.call('HSET', desk, 'visit', visit)
redis.call('PERSIST', desk)
return {'ok', now(), tonumber(found[2]) or 0}

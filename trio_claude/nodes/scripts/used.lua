-- Which sessions are in use on any node, be it by a lock or by a run that lives. ARGV: prefix, and for each that is asked
-- for its identity, its session (empty: any of the identity's), and the name of its lock, or what those names begin with.
-- Answers for each whether it is (0 or 1).
local prefix, locks, runs, used = ARGV[1], {}, {}, {}
for _, node in ipairs(redis.call('HKEYS', prefix .. ':nodes')) do
  for _, entry in ipairs(redis.call('SMEMBERS', prefix .. ':held:' .. node)) do
    local key = string.match(entry, '^lock|[^|]+|(.*)$')
    if key then locks[key] = true end
  end
  for _, run in ipairs(redis.call('SMEMBERS', prefix .. ':live:' .. node)) do
    local who, session = unpack(redis.call('HMGET', prefix .. ':run:' .. run, 'identity', 'session'))
    if who then
      runs[#who .. ':' .. who] = true
      runs[#who .. ':' .. who .. (session or '')] = true
    end
  end
end

local function is_locked(session, key)
  if session ~= '' then return locks[key] end
  for one in pairs(locks) do
    if string.sub(one, 1, #key) == key then return true end
  end
end

for place = 2, #ARGV, 3 do
  local who, session, key = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  used[#used + 1] = (runs[#who .. ':' .. who .. session] or is_locked(session, key)) and 1 or 0
end
return used

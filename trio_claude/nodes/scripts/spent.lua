-- What was used on a day of UTC, by Redis' clock: for each name tokens and millionths of a dollar; all together is ''.
local MOST = 2 ^ 53
local KEPT = 172800 -- seconds

local function spent_key(prefix)
  return prefix .. ':spent:' .. math.floor(redis.call('TIME')[1] / 86400)
end

local function spent(key, name)
  local found = redis.call('HMGET', key, 'tokens:' .. name, 'dollars:' .. name)
  return tonumber(found[1]) or 0, tonumber(found[2]) or 0
end

local function spend(key, name, tokens, millionths)
  local before, dollars = spent(key, name)
  tokens, dollars = math.min(before + tokens, MOST), math.min(dollars + millionths, MOST)
  redis.call('HSET', key, 'tokens:' .. name, string.format('%.0f', tokens),
    'dollars:' .. name, string.format('%.0f', dollars))
  return tokens, dollars
end

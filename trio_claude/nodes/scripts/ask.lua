-- Count a prompt of a name, and of all together, unless a budget is used up or a rate is passed.
-- ARGV: prefix, node, token, visit, name; and of the name and of all: prompts a minute, tokens a day, dollars a day
--: use now
--: use desk
--: use spent
local prefix, node, token, visit, name = unpack(ARGV, 1, 5)
local why = refusal(prefix, node, token, visit)
if why then return {why} end

local day, limits, used = spent_key(prefix), {}, {}
for number, who in ipairs({name, ''}) do
  local first = 3 + 3 * number
  limits[number] = {rate = tonumber(ARGV[first]), tokens = tonumber(ARGV[first + 1]), dollars = tonumber(ARGV[first + 2])}
  used[number] = {spent(day, who)}
end

local function is_over(limit, sums)
  return (limit.tokens > 0 and sums[1] >= limit.tokens) or (limit.dollars > 0 and sums[2] / 1000000 >= limit.dollars)
end

local time = redis.call('TIME')
local seconds = time[1] + time[2] / 1000000
local buckets, waits = {}, {0, 0}
for number, who in ipairs({name, ''}) do
  local rate, key = limits[number].rate, prefix .. ':rate:' .. who
  if rate > 0 then
    local size, found = math.max(1, rate), redis.call('HMGET', key, 'level', 'at')
    local level, at = tonumber(found[1]) or size, tonumber(found[2]) or seconds
    if at > seconds then -- the clock has gone back: it fills from now on
      at = seconds
      redis.call('HSET', key, 'at', string.format('%.6f', at))
    end
    level = math.min(size, level + (seconds - at) * rate / 60)
    waits[number] = math.max(0, math.ceil((1 - level) * 60 / rate * 1000000))
    buckets[#buckets + 1] = {key = key, level = level, full = math.ceil(size * 60 / rate * 1000) + 1000}
  end
end

if not is_over(limits[1], used[1]) and not is_over(limits[2], used[2]) and waits[1] == 0 and waits[2] == 0 then
  for _, bucket in ipairs(buckets) do
    redis.call('HSET', bucket.key, 'level', string.format('%.17g', bucket.level - 1), 'at', string.format('%.6f', seconds))
    redis.call('PEXPIRE', bucket.key, bucket.full)
  end
end
return {'ok', now(), used[1][1], used[1][2], used[2][1], used[2][2], waits[1], waits[2]}

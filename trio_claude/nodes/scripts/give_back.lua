-- Count a prompt off that `ask` has counted. ARGV: prefix, name; and of the name and of all: prompts a minute
for number, who in ipairs({ARGV[2], ''}) do
  local rate, key = tonumber(ARGV[2 + number]), ARGV[1] .. ':rate:' .. who
  local level = tonumber(redis.call('HGET', key, 'level') or '')
  if rate > 0 and level then
    redis.call('HSET', key, 'level', string.format('%.17g', math.min(math.max(1, rate), level + 1)))
  end
end
return {'ok'}

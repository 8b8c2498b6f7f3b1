-- Ends runs that are live here and not at their node, which lives: Redis has lost how they ended.
-- ARGV: prefix, node, and the runs that it knows
--: use now
--: use lose
local prefix, node, known = ARGV[1], ARGV[2], {}
for number = 3, #ARGV do known[ARGV[number]] = true end
for _, run in ipairs(redis.call('SMEMBERS', prefix .. ':live:' .. node)) do
  if not known[run] then lose_run(prefix, node, run, now(), 'Redis has lost how it ended') end
end
return 'ok'

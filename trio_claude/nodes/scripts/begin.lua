-- A run begins. ARGV: prefix, run, node, token, seconds for which it is kept once it has ended (0: for ever), identity,
-- time of its start, and further fields with their values. Answers `ok`, also where it was told before, and else why
-- not; `lease` is that the token is not its server's any more.
--: use owned
--: use node
local prefix, run, node, token, identity, started = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6], ARGV[7]
local key = prefix .. ':run:' .. run
local why = forbidden(key, node, token)
if why ~= 'gone' then return (why == nil or why == 'told') and 'ok' or why end
if redis.call('EXISTS', prefix .. ':gone:' .. run) == 1 then return 'gone' end
local own = redis.call('HGET', prefix .. ':nodes', node)
if not own or read_node(own) ~= tonumber(token) then return 'lease' end
local size = 0
for place = 8, #ARGV, 2 do
  if ARGV[place] == 'prompt' or ARGV[place] == 'options' then size = size + #ARGV[place + 1] end
end
redis.call('INCRBY', prefix .. ':bytes', size)
redis.call('HSET', key, 'node', node, 'token', token, 'state', 'live', 'stored', 0, 'bytes', size, 'number', 0,
  'beside', 0, 'whole', 1, 'keep', ARGV[5], 'identity', identity, 'started', started, unpack(ARGV, 8))
redis.call('SADD', prefix .. ':live:' .. node, run)
redis.call('ZADD', prefix .. ':runs', started, run)
redis.call('ZADD', prefix .. ':runs:' .. identity, started, run)
return 'ok'

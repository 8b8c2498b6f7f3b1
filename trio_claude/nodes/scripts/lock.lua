-- Hold a lock, unless another holds it who lives.
-- ARGV: prefix, node, token, visit, owner, key
--: use desk
--: use held
local prefix, node, token, visit, owner, key = unpack(ARGV)
local why = refusal(prefix, node, token, visit)
if why then return {why} end
local holder = redis.call('GET', key)
if holder and holder ~= owner and lives(prefix, holder) then return {'busy'} end
redis.call('SET', key, owner)
note(prefix, node, 'lock', owner, key)
return {'ok'}

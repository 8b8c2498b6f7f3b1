#!lua flags=allow-oom
-- Take a ticket, which nobody can take again.
-- ARGV: prefix, digest
local said = redis.call('GETDEL', ARGV[1] .. ':ticket:' .. ARGV[2])
if not said then return {'none'} end
redis.call('ZREM', ARGV[1] .. ':tickets', ARGV[2])
redis.call('ZREM', ARGV[1] .. ':tickets:' .. cjson.decode(said).identity.name, ARGV[2])
return {'ok', said}

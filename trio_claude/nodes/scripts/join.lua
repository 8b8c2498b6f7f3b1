-- Has a node join, under a token that none had before; what it began under an older one is lost. Returns the token.
-- ARGV: prefix, node, its lease in ms
--: use now
--: use node
--: use lose
local prefix, node, at = ARGV[1], ARGV[2], now()
lose(prefix, node, at)
local token = redis.call('INCR', prefix .. ':epoch')
write_node(prefix, node, token, at, at, tonumber(ARGV[3]))
return token

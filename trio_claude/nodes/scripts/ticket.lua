-- Keep a ticket for a while, of which a name may have so many, and all together; the oldest goes first.
-- ARGV: prefix, digest, name, what it says, milliseconds, tickets of a name, tickets of all
local prefix, digest, name, said = unpack(ARGV, 1, 4)
local lifetime, time = tonumber(ARGV[5]), redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for number, key in ipairs({prefix .. ':tickets:' .. name, prefix .. ':tickets'}) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if redis.call('ZCARD', key) >= tonumber(ARGV[5 + number]) then
    redis.call('DEL', prefix .. ':ticket:' .. redis.call('ZPOPMIN', key)[1])
  end
  redis.call('ZADD', key, now + lifetime * 1000, digest)
  redis.call('PEXPIRE', key, lifetime)
end
redis.call('SET', prefix .. ':ticket:' .. digest, said, 'PX', lifetime)
return {'ok'}

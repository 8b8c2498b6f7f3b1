-- Take one of a number of places, or wait in line for it: first come, first served. Asked again and again by who waits.
-- Returns, with a place, the node that is next where there is another; else its number in line, and how many are before.
-- ARGV: prefix, node, token, visit, owner, the keys of those that have a place and of those that wait, and how many may
--: use desk
--: use held
local prefix, node, token, visit, owner, running, waiting = unpack(ARGV, 1, 7)
local most, most_waiting = tonumber(ARGV[8]), tonumber(ARGV[9])
local why = refusal(prefix, node, token, visit)
if why then return {why} end
if redis.call('SISMEMBER', running, owner) == 1 then return {'ok', ''} end

local head = redis.call('ZRANGE', waiting, 0, 0)[1]
while head and not lives(prefix, head) do
  redis.call('ZREM', waiting, head)
  head = redis.call('ZRANGE', waiting, 0, 0)[1]
end
if redis.call('SCARD', running) >= most then
  for _, holder in ipairs(redis.call('SMEMBERS', running)) do
    if not lives(prefix, holder) then redis.call('SREM', running, holder) end
  end
end

local rank = redis.call('ZRANK', waiting, owner)
local ahead = rank or redis.call('ZCARD', waiting)
if redis.call('SCARD', running) + ahead < most then
  drop(prefix, node, 'waiting|' .. owner .. '|' .. waiting)
  redis.call('SADD', running, owner)
  note(prefix, node, 'running', owner, running)
  return {'ok', redis.call('SCARD', running) < most and next_node(waiting) or ''}
end
if rank then return {'wait', tonumber(redis.call('ZSCORE', waiting, owner)), rank} end
if most_waiting > 0 and ahead >= most_waiting then return {'full', ahead} end
local number = redis.call('INCR', prefix .. ':line')
redis.call('ZADD', waiting, number, owner)
note(prefix, node, 'waiting', owner, waiting)
return {'wait', number, ahead}

-- The end of a live run, whoever tells of it: its server, or another that has declared it lost. All in one step: its
-- facts, the mark behind which nothing can be stored, what it used in the sums of the day, and for how long it is kept.
--: use day_of
local MODELS_KEPT = 100 -- that the sums of a day and an identity tell apart; the others are told together
local SUM_TOKENS = 1e18

local function under(identity)
  return #identity .. ':' .. identity
end

-- Add what a run used to the sums of a day; return the model that it is counted under.
local function count(prefix, day, identity, model, used)
  local sums, who = prefix .. ':usage:' .. day, under(identity)
  if redis.call('HEXISTS', sums, 'u' .. who .. model) == 0 then
    if tonumber(redis.call('HGET', sums, 'm' .. who) or 0) >= MODELS_KEPT then model = '' end
    if redis.call('HEXISTS', sums, 'u' .. who .. model) == 0 then redis.call('HINCRBY', sums, 'm' .. who, 1) end
    redis.call('SADD', prefix .. ':usage', day)
  end
  local before, sum = redis.call('HGET', sums, 'u' .. who .. model) or '0 0 0 0 0 0', {}
  for number in string.gmatch(before, '%S+') do sum[#sum + 1] = tonumber(number) end
  redis.call('HSET', sums, 'u' .. who .. model, string.format('%.0f %.0f %.0f %.17g %.17g %.0f',
    sum[1] + 1, sum[2] + used.turns, math.min(sum[3] + used.tokens, SUM_TOKENS), sum[4] + used.dollars,
    sum[5] + used.seconds, sum[6] + used.failed))
  return model
end

-- `ended` is a time in seconds; `used` has turns, tokens, dollars, seconds and failed (0 or 1); `facts` are fields and
-- values, the reason among them, of which `session` counts only where none was known.
local function finish(prefix, run, reason, ended, used, session, facts)
  local key = prefix .. ':run:' .. run
  local known = redis.call('HMGET', key, 'identity', 'model', 'node', 'bytes', 'session', 'keep', 'started')
  local identity, day = known[1], day_of(ended)
  session = known[5] or session
  redis.call('XADD', prefix .. ':lines:' .. run, '18446744073709551615-0', 'end', reason)
  local model = count(prefix, day, identity, known[2] or '', used)
  redis.call('HSET', key, 'state', 'ended', 'reason', reason, 'ended', string.format('%.17g', ended), 'day', day,
    'counted', model, 'turns', used.turns, 'tokens', string.format('%.0f', used.tokens),
    'dollars', string.format('%.17g', used.dollars), 'seconds', string.format('%.17g', used.seconds),
    'failed', used.failed, unpack(facts))
  redis.call('SREM', prefix .. ':live:' .. known[3], run)
  local kept = {identity = identity, bytes = tonumber(known[4] or 0), ended = ended}
  if session then
    kept.session = session
    redis.call('HSET', key, 'session', session)
    redis.call('ZADD', prefix .. ':session:' .. under(identity) .. session, known[7], run)
  end
  redis.call('HSET', prefix .. ':kept', run, cjson.encode(kept))
  if known[6] and known[6] ~= '0' then
    redis.call('EXPIRE', key, known[6])
    redis.call('EXPIRE', prefix .. ':lines:' .. run, known[6])
  end
end

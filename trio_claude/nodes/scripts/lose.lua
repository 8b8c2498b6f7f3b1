-- Ends what a node has, because it is lost or leaves: its live runs, what it holds, and all that is sent to it.
--: use finish
--: use held
local function lose_run(prefix, node, run, at)
  local owner, state, stored = unpack(redis.call('HMGET', prefix .. ':run:' .. run, 'node', 'state', 'stored'))
  if owner ~= node or state ~= 'live' then
    return
  end
  local nothing = {turns = 0, tokens = 0, dollars = 0, seconds = 0, failed = 1}
  local facts = {'lines', stored or '0', 'error', 'the server ended before the run did'}
  finish(prefix, run, 'node-lost', at / 1000, nothing, nil, facts)
end

local function lose(prefix, node, at)
  local live = prefix .. ':live:' .. node
  for _, run in ipairs(redis.call('SMEMBERS', live)) do
    lose_run(prefix, node, run, at)
  end
  drop_all(prefix, node)
  redis.call('EXPIRE', prefix .. ':desk:' .. node, 172800) -- it may come back, and must not be counted twice then
  redis.call('DEL', live, prefix .. ':control:' .. node)
  redis.call('HDEL', prefix .. ':nodes', node)
end

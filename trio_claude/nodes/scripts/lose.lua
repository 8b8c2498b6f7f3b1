-- Ends what a node has, because it is lost or leaves: its live runs, what it holds, and all that is sent to it.
--: use finish
--: use held
local function lose_run(prefix, node, run, at, why)
  local known = redis.call('HMGET', prefix .. ':run:' .. run, 'node', 'state', 'stored', 'tokens', 'dollars')
  local owner, state, stored = unpack(known)
  if owner ~= node or state ~= 'live' then
    return
  end
  local used = {
    turns = 0, tokens = tonumber(known[4] or 0), dollars = tonumber(known[5] or 0), seconds = 0, failed = 1,
  }
  local facts = {'lines', stored or '0', 'whole', 0, 'error', why}
  finish(prefix, run, 'node-lost', at / 1000, used, nil, facts)
end

local function lose(prefix, node, at)
  local live = prefix .. ':live:' .. node
  for _, run in ipairs(redis.call('SMEMBERS', live)) do
    lose_run(prefix, node, run, at, 'the server ended before the run did')
  end
  drop_all(prefix, node)
  redis.call('EXPIRE', prefix .. ':desk:' .. node, 172800) -- it may come back, and must not be counted twice then
  redis.call('DEL', live, prefix .. ':control:' .. node)
  redis.call('HDEL', prefix .. ':nodes', node)
end

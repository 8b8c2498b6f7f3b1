-- Ends what a node has, because it is lost or leaves: its live runs, and all that is sent to it.
local END_OF_LINES = '18446744073709551615-0'

local function lose_run(prefix, node, run, at)
  local key, lines = prefix .. ':run:' .. run, prefix .. ':lines:' .. run
  local owner, state, stored = unpack(redis.call('HMGET', key, 'node', 'state', 'stored'))
  if owner ~= node or state ~= 'live' then
    return
  end
  redis.call(
    'HSET', key, 'state', 'ended', 'reason', 'node-lost', 'ended', string.format('%.3f', at / 1000),
    'lines', stored or '0', 'error', 'the server ended before the run did'
  )
  redis.call('XADD', lines, END_OF_LINES, 'end', 'node-lost')
end

local function lose(prefix, node, at)
  local live = prefix .. ':live:' .. node
  for _, run in ipairs(redis.call('SMEMBERS', live)) do
    lose_run(prefix, node, run, at)
  end
  redis.call('DEL', live, prefix .. ':control:' .. node)
  redis.call('HDEL', prefix .. ':nodes', node)
end

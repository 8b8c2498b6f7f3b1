-- What stands of a node in the hash of nodes: its token, since when it beats without a pause, its last beat and its
-- lease; times in milliseconds, by Redis' clock.
local function read_node(text)
  local token, since, beat, lease = string.match(text, '^(%d+):(%d+):(%d+):(%d+)$')
  return tonumber(token), tonumber(since), tonumber(beat), tonumber(lease)
end

local function write_node(prefix, node, ...)
  redis.call('HSET', prefix .. ':nodes', node, string.format('%.0f:%.0f:%.0f:%.0f', ...))
end

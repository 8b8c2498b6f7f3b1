-- What a node holds: a set of entries `KIND|OWNER|KEY`, kept beside the locks, places and lines themselves.
local function note(prefix, node, kind, owner, key)
  redis.call('SADD', prefix .. ':held:' .. node, kind .. '|' .. owner .. '|' .. key)
end

local function drop(prefix, node, entry)
  local kind, owner, key = string.match(entry, '^(%a+)|([^|]+)|(.*)$')
  if kind == 'lock' then
    if redis.call('GET', key) == owner then redis.call('DEL', key) end
  elseif kind == 'running' then
    redis.call('SREM', key, owner)
  else
    redis.call('ZREM', key, owner)
  end
  redis.call('SREM', prefix .. ':held:' .. node, entry)
end

-- The node on which the first of those waits that wait for a place, empty where nobody does.
local function next_node(waiting)
  local head = redis.call('ZRANGE', waiting, 0, 0)[1]
  return head and string.match(head, '^[^/]+') or ''
end

local function drop_all(prefix, node)
  for _, entry in ipairs(redis.call('SMEMBERS', prefix .. ':held:' .. node)) do
    drop(prefix, node, entry)
  end
end

-- Who is a node now: the token under which it is known, false where it is not. An owner is `NODE/TOKEN/STAMP`.
--: use node
local known = {}
local function token_of(prefix, node)
  if known[node] == nil then
    local said = redis.call('HGET', prefix .. ':nodes', node)
    known[node] = said and read_node(said)
  end
  return known[node]
end

local function lives(prefix, owner)
  local node, token = string.match(owner, '^([^/]+)/([^/]+)/')
  return token_of(prefix, node) == tonumber(token)
end

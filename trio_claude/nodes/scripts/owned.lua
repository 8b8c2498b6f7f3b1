-- A verdict after which a server tells no more of a run. Where a replica is asked, which may lack what the server has told
-- the one before, no verdict is given: it takes no writes, and says so.
local function surely(key, why)
  redis.call('HDEL', key, '')
  return why
end

-- What keeps a server from telling more of a run, nil where nothing does: `gone`: Redis does not know the run; `fenced`:
-- it is another's, or was begun with another token; `over`: it was declared lost. `told`: the server told its end.
local function forbidden(key, node, token)
  local known = redis.call('HMGET', key, 'node', 'token', 'state', 'reason')
  if not known[1] then return surely(key, 'gone') end
  if known[1] ~= node or known[2] ~= token then return surely(key, 'fenced') end
  if known[3] == 'live' then return nil end
  return known[4] == 'node-lost' and surely(key, 'over') or 'told'
end

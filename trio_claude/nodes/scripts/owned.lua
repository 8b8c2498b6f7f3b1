-- What keeps a server from telling more of a run, nil where nothing does: `gone`: Redis does not know the run; `fenced`:
-- it is another's, or was begun with another token; `over`: it was declared lost. `told`: the server told its end.
local function forbidden(key, node, token)
  local known = redis.call('HMGET', key, 'node', 'token', 'state', 'reason')
  if not known[1] then return 'gone' end
  if known[1] ~= node or known[2] ~= token then return 'fenced' end
  if known[3] == 'live' then return nil end
  return known[4] == 'node-lost' and 'over' or 'told'
end

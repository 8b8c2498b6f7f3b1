-- A node's sign of life, and its look at the others. Returns 0 where it was declared lost itself; else 1, or 2 where it
-- was forgotten, the others (each name behind its token), and those that it has declared lost.
-- ARGV: prefix, node, its token, its lease in ms, for how many ms its connection is whole
--: use now
--: use node
--: use lose
local prefix, node, token, lease, whole = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local at = now()
local since = at
local epoch = tonumber(redis.call('GET', prefix .. ':epoch') or '0')
local own = redis.call('HGET', prefix .. ':nodes', node)
if own then
  local known, regular, beat = read_node(own)
  if known > token then
    return {0}
  end
  if known < token then -- Redis has lost that this node was found to be lost: what it had then is lost all the same
    lose(prefix, node, at)
  end
  if math.abs(at - beat) <= lease / 2 then -- else there was a pause, or the clock has jumped
    since = regular
  end
elseif epoch >= token then
  return {0}
end
if epoch < token then -- Redis has lost its last moments, not this node
  redis.call('SET', prefix .. ':epoch', token)
end
write_node(prefix, node, token, since, at, lease)

local others, lost = {}, {}
local steady = math.min(whole, at - since)
local all = redis.call('HGETALL', prefix .. ':nodes')
for index = 1, #all, 2 do
  local name = all[index]
  local its, _, beat, its_lease = read_node(all[index + 1])
  if name ~= node and at - beat > its_lease and steady > its_lease then
    lose(prefix, name, at)
    lost[#lost + 1] = name
  elseif name ~= node then
    if beat > at then -- the clock has gone back; if it lives no more it is lost a lease from now
      write_node(prefix, name, its, at, at, its_lease)
    end
    others[#others + 1] = its
    others[#others + 1] = name
  end
end
return {own and 1 or 2, others, lost}

-- Why a node may not decide anything, false where it may: it was declared lost, or it speaks on a connection that it has
-- given up, or this Redis does not know what it holds.
--: use members
local function refusal(prefix, node, token, visit)
  if token_of(prefix, node) ~= tonumber(token) then return 'lost' end
  if redis.call('HGET', prefix .. ':desk:' .. node, 'visit') ~= visit then return 'late' end
  return false
end

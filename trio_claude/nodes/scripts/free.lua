#!lua flags=allow-oom
-- Let go of what a node holds. Returns who is next where a place may have come free: nodes, each with the name that waits.
-- ARGV: prefix, node, token, visit, and entries
--: use held
local prefix, node = ARGV[1], ARGV[2]
local places, names, told = prefix .. ':running:', {}, {'ok'}
for number = 5, #ARGV do
  drop(prefix, node, ARGV[number])
  local kind, key = string.match(ARGV[number], '^(%a+)|[^|]+|(.*)$')
  if kind == 'running' then names[string.sub(key, #places + 1)] = true end
end
for name in pairs(names) do
  told[#told + 1], told[#told + 2] = next_node(prefix .. ':waiting:' .. name), name
end
return told

-- The last parts of a run's history. ARGV: prefix, run, and bytes of it after which there are no more. Answers kind,
-- first, count, number and data of each part, the last first.
local lines, most = ARGV[1] .. ':lines:' .. ARGV[2], ARGV[3] + 0
local found, size, from = {}, 0, '(18446744073709551615-0'
while size < most do
  local entries = redis.call('XREVRANGE', lines, from, '-', 'COUNT', 8)
  for _, entry in ipairs(entries) do
    local told = entry[2]
    found[#found + 1] = {
      tonumber(told[2]), tonumber(string.match(entry[1], '^%d+')), tonumber(told[4]), tonumber(told[6]), told[8],
    }
    size = size + #told[8]
    if size >= most then break end
  end
  if #entries < 8 then break end
  from = '(' .. entries[#entries][1]
end
return found

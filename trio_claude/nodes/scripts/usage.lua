-- The sums of a day. ARGV: prefix, day, whose (with a = in front; empty: everybody's). Answers identity, model and the
-- sums of each: runs, turns, tokens, dollars, seconds and failed, in one text.
local told = redis.call('HGETALL', ARGV[1] .. ':usage:' .. ARGV[2])
local answer = {}
for place = 1, #told, 2 do
  local kind, length, rest = string.match(told[place], '^(%a)(%d+):(.*)$')
  local identity = rest and string.sub(rest, 1, length + 0)
  if kind == 'u' and (ARGV[3] == '' or ARGV[3] == '=' .. identity) then
    answer[#answer + 1] = {identity, string.sub(rest, length + 1), told[place + 1]}
  end
end
return answer

#!lua flags=allow-oom
-- Deletes what is not to be kept any more among some runs, the oldest first. ARGV: prefix, days, runs and bytes that are
-- kept (0: any number), how many runs to pass over, how many to look at, and for how many ms nobody else has a turn (0 in
-- the next steps of one). Answers how many to pass over in the next step, and whether one is due (0 or 1).
--: use now
--: use drop
local prefix, days, runs, bytes, over, most = ARGV[1], ARGV[2] + 0, ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0, ARGV[6] + 0
local turn = ARGV[7] + 0
if turn > 0 and not redis.call('SET', prefix .. ':tidy', '', 'NX', 'PX', turn) then return {over, 0} end
local old = days > 0 and now() / 1000 - days * 86400 or -math.huge

local function is_too_much()
  return (runs > 0 and redis.call('ZCARD', prefix .. ':runs') > runs)
    or (bytes > 0 and tonumber(redis.call('GET', prefix .. ':bytes') or 0) > bytes)
end

local looked = redis.call('ZRANGE', prefix .. ':runs', over, over + most - 1, 'WITHSCORES')
local due = #looked == 2 * most
for place = 1, #looked, 2 do
  local run, found = looked[place], redis.call('HGET', prefix .. ':kept', looked[place])
  local kept = found and cjson.decode(found)
  if kept and (kept.ended < old or is_too_much()) then
    drop(prefix, run, kept)
  else
    over = over + 1
  end
end
due = due and (tonumber(looked[#looked]) < old or is_too_much())
return {over, due and 1 or 0}

#!lua flags=allow-oom
-- Deletes runs that have ended. ARGV: prefix, seconds, whose (with a = in front; empty: anybody's), and runs. For so many
-- seconds nobody can begin them anew: their server may still have to tell of them what it does not know to be told.
-- Answers what is deleted: run, identity, session (empty: none) of each.
--: use drop
local prefix, whose, gone = ARGV[1], ARGV[3], {}
for place = 4, #ARGV do
  local run = ARGV[place]
  local found = redis.call('HGET', prefix .. ':kept', run)
  local kept = found and cjson.decode(found)
  if kept and (whose == '' or whose == '=' .. kept.identity) then
    drop(prefix, run, kept)
    redis.call('SET', prefix .. ':gone:' .. run, '', 'EX', ARGV[2])
    gone[#gone + 1] = {run, kept.identity, kept.session or ''}
  end
end
return gone

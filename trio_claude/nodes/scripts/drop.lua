-- Whatever there is of a run that has ended goes; what it used stays in the sums of its day.
local function drop(prefix, run, kept)
  local who = kept.identity
  redis.call('UNLINK', prefix .. ':run:' .. run, prefix .. ':lines:' .. run)
  redis.call('ZREM', prefix .. ':runs', run)
  redis.call('ZREM', prefix .. ':runs:' .. who, run)
  if kept.session then redis.call('ZREM', prefix .. ':session:' .. #who .. ':' .. who .. kept.session, run) end
  redis.call('DECRBY', prefix .. ':bytes', kept.bytes)
  redis.call('HDEL', prefix .. ':kept', run)
end

-- A part of a run's history. ARGV: prefix, run, node, token, kind, first, count, number, data. Answers `ok`, also where
-- it is stored already, and else why not; `hole` is that something before it is not stored.
--: use owned
local prefix, run, kind, first, count, number = ARGV[1], ARGV[2], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local key = prefix .. ':run:' .. run
local why = forbidden(key, ARGV[3], ARGV[4])
if why and why ~= 'told' then return why end
local there = redis.call('HMGET', key, 'stored', 'number', 'beside')
local stored, beside = tonumber(there[1]), tonumber(there[3])
if number <= tonumber(there[2]) then return 'ok' end
if why then return surely(key, why) end
if number ~= there[2] + 1 or stored ~= (kind == '0' and first - 1 or tonumber(first)) then
  return surely(key, 'hole')
end
if kind == '0' then
  stored, beside = stored + count, 0
else
  beside = beside + 1
end
redis.call('XADD', prefix .. ':lines:' .. run, first .. '-' .. beside, 'k', kind, 'c', count, 'n', ARGV[8], 'd', ARGV[9])
redis.call('HSET', key, 'stored', stored, 'number', ARGV[8], 'beside', beside)
redis.call('HINCRBY', key, 'bytes', #ARGV[9])
redis.call('INCRBY', prefix .. ':bytes', #ARGV[9])
return 'ok'

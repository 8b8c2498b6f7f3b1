-- A run has ended. ARGV: prefix, run, node, token, reason, time, turns, tokens, dollars, seconds, failed (0 or 1),
-- session (empty: none), lines, whether all of it was told (0 or 1), and further fields with their values. Answers `ok`,
-- also where that was told before, and else why not.
--: use owned
--: use finish
local prefix, run, session, lines = ARGV[1], ARGV[2], ARGV[12], ARGV[13]
local key = prefix .. ':run:' .. run
local why = forbidden(key, ARGV[3], ARGV[4])
if why then return why == 'told' and 'ok' or why end
local used = {
  turns = tonumber(ARGV[7]), tokens = tonumber(ARGV[8]), dollars = tonumber(ARGV[9]), seconds = tonumber(ARGV[10]),
  failed = tonumber(ARGV[11]),
}
local whole = ARGV[14] == '1' and redis.call('HGET', key, 'stored') == lines and 1 or 0
finish(prefix, run, ARGV[5], tonumber(ARGV[6]), used, session ~= '' and session or nil,
  {'lines', lines, 'whole', whole, unpack(ARGV, 15)})
return 'ok'

-- What a live run has used so far, which counts where its server does not see its end. ARGV: prefix, run, node, token,
-- tokens, dollars. Answers `ok`, also where the run's end was told before, and else why not.
--: use owned
local key = ARGV[1] .. ':run:' .. ARGV[2]
local why = forbidden(key, ARGV[3], ARGV[4])
if why then return why == 'told' and 'ok' or why end
redis.call('HSET', key, 'tokens', ARGV[5], 'dollars', ARGV[6])
return 'ok'

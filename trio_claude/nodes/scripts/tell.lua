-- Puts packets into the stream of a node, if there is that node; returns whether there is.
-- ARGV: prefix, to whom, from whom, the series, how many packets are kept, then each packet's number and itself
if redis.call('HEXISTS', ARGV[1] .. ':nodes', ARGV[2]) == 0 then
  return 0
end
for index = 6, #ARGV, 2 do
  redis.call(
    'XADD', ARGV[1] .. ':control:' .. ARGV[2], 'MAXLEN', '~', ARGV[5], '*',
    'from', ARGV[3], 'series', ARGV[4], 'number', ARGV[index], 'packet', ARGV[index + 1]
  )
end
return 1

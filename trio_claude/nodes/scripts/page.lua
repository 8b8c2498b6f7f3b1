-- A page of a stream: of what a watcher has not got yet of a run's history, or a node of what it was told. ARGV: the key,
-- the id of the entry behind which it begins, and bytes and entries after which it ends. Answers entries as XRANGE does,
-- also the mark of the end.
--: use walk
local found, size, most, count = {}, 0, ARGV[3] + 0, ARGV[4] + 0
walk(ARGV[1], '(' .. ARGV[2], '+', function(entry)
  found[#found + 1] = entry
  size = size + #(entry[2][8] or '')
  return size >= most or #found >= count
end)
return found

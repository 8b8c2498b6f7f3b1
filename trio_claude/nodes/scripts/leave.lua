-- Has a node leave: what it has not ended is lost.
-- ARGV: prefix, node
--: use now
--: use lose
lose(ARGV[1], ARGV[2], now())

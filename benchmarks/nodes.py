"""Several servers that share a Redis: what must hold of them, shown by cutting, killing and asking.

    python benchmarks/nodes.py [drops [N]] [pace [N]] [kills [N]] [outages [N]] [limits [N]] [rolling [N]]
                               [--seed N] [--json FILE] [--markdown FILE]

A Redis and three servers (`trio-claude serve … --redis …`), each a process of its own, all on loopback. Without a word
all parts go, with the numbers below; each part starts its own.

* `drops` (1,000 connections): sessions lose their connections at random lines and in the middle of frames, by resets,
  half closes and silence, and come back at another server as owners: no line of the numbered ones is lost, comes twice
  or in another order, and the journal has the same. Then how long lines take to watchers elsewhere.

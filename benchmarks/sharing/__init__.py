"""Several servers that share a Redis, put to the test: what `nodes.py` is made of."""

"""Several servers that share a Redis and look like one. Imported only where the setting `redis` is given.

Duty: to put the parts together. Nothing goes between servers but by way of Redis. This module must never know a key.
"""

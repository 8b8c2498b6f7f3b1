"""The relay benchmark: peers that speak one contract, a child and a load client in C, scenarios, and reports.

Nothing here is imported by the package. Every listener and client stays on 127.0.0.1; every load is bounded in number
and time; only processes that were started here, or descend from such, are ended.
"""

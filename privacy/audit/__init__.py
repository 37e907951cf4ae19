"""What a privacy officer runs: verify ledgers and releases, recompute every epsilon, say plainly what holds.

Reads files and nothing else. No figure is taken from a report where the ledgers can give it; where something cannot be
checked, the finding says so instead of passing.
"""

"""The server of a federation: asks queries, adds up answers, steps an adapter, signs releases.

It sees no text and holds no model: numpy arrays in, numpy arrays out. What a device must be protected from is decided
in `privacy`, which both sides share; nothing here imports `client`, and `client` imports nothing from here.
"""

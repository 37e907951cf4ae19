"""The pure core of confide: what may leave a device, how it is protected, counted and checked.

Arrays and bytes in, arrays and bytes out. Nothing here knows torch, Flower, a socket or a log. The wire is written
down in PROTOCOL.md, every claim and the test that defends it in THREATS.md, both beside this file.
"""

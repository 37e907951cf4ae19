"""Attacks on what is released and on all that a server sees: each with protection off, and with it.

An attack that fails where nothing protects has no teeth and shows nothing; it is then reported as not made. With
protection its interval stands beside what (epsilon, delta) of the same run allows. Everything is attacked through the
real devices, the real training and the real sum; people and secrets are invented unless a file of people is given.
"""

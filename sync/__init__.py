"""The protocol and the engine: what nodes say to each other, decided without sockets, SQL, clock or chance.

What carries it out belongs in `drivers`.
"""

"""How a model opens and closes a turn, and what can be wrong with it.

Light to import on purpose: the contract and the checks bring torch with them and are imported by name.
"""

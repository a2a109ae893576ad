"""Runtimes people serve models with, each driven as a user drives it."""

"""Checkpoints broken at random, by number: `python -m tests.fuzz` runs all of them, the test suite a share."""

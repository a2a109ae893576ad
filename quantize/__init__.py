"""Solvers: pure functions of (weight, statistics, spec)."""

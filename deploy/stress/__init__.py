"""Runs under a scheduler that owns every choice: cases, engine, oracles, strategies, shrinking."""

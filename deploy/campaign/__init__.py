"""Campaigns: many runs with one verdict, the zoo's table, comparisons, counterexample files."""

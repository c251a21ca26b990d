"""Figures against a named peer or floor, measured in the same run; never timed tests."""

"""Words: everything that can be said between components. Imports nothing of ours."""

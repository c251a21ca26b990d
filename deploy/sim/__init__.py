"""The seeded runtime: one process, every choice made by one oracle."""

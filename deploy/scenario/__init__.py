"""What to run: workloads from xl.cfg files and TOML scenarios, checked before anything starts."""

"""A guest's vCPUs: the programs that they run."""

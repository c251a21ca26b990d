"""Models that know nothing of superpages, and the checks that hold the system to them."""

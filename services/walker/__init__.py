"""The HAP walker of a vCPU: nested walks over received table frames, and what it caches of them."""

"""The memory allocator of a NUMA node: buddy heap, frame owners, M2P, domain accounting."""

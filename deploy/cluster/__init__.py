"""The Ray runtime: plain synchronous actors, one fire-and-forget call, coalesced messages."""

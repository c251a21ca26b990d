"""The toolstack: xl.cfg, the build plan, the extent ladder and the life of a domain."""

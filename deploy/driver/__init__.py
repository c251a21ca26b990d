"""Takes a scenario through its phases on any runtime, then looks at what came of it."""

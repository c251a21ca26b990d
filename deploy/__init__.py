"""Where components run: scenarios, worlds, the seeded runtime, Ray, the command line."""

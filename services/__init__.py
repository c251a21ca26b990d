"""What components do. Imports protocols only, and inside itself one way."""

"""The commands behind every number that the project claims."""

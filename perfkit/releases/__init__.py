"""What perfkit publishes, and what reads it."""

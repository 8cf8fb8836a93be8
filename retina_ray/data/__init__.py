"""Data sets: import, check, plan, stream. Nothing heavy is imported here."""

"""kapps."""

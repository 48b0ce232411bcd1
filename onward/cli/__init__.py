"""The command `onward`: flags, tables, pictures."""

"""A run: what it starts from, how it goes, and the folder that it leaves behind."""

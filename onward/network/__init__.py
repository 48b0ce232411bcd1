"""A network and what it is made of: samplers, objectives, blocks, readouts."""

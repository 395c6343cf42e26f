"""Models: the network and the potentials put together, saved, loaded, merged and shared."""

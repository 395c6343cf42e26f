"""Models: configuration, network and potentials, with functions that save, load, merge and share models."""

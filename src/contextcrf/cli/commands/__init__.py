"""The commands of the command line as functions: their signatures are the options, their docstrings the help.

Heavy libraries are imported inside them, so that `--help` does not wait for Lightning.
"""

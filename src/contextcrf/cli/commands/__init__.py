"""The commands of the command line as functions: their signatures are the options, their docstrings the help.

Heavy libraries are imported inside them: `--help` should not wait for Lightning.
"""

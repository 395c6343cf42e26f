"""The commands as functions. Their signatures define the options, and their docstrings are the help texts.

Heavy libraries are imported inside the functions, so that `--help` does not wait for Lightning.
"""

"""Utilities that all packages use: errors, files, locks, progress, provenance, runtime defaults, resizing, tables."""

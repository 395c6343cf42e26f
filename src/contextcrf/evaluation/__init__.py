"""Measuring models: metrics, evaluation of systems, comparison with intervals, tuning, reports."""

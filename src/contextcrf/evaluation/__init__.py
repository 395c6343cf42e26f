"""Evaluation of models: metrics, systems, comparisons with confidence intervals, tuning and reports."""

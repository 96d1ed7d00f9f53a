"""Metrics, simulated clicking, baselines, tables and pictures."""

"""Losses, prompt simulation and the two-stage trainer."""

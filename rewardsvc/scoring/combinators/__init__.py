"""Scorers that are built on other scorers; see `base` for what they have in common."""

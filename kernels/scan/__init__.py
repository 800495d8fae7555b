"""Backward-in-time recurrences over [B, T]: discounted sums and advantages."""

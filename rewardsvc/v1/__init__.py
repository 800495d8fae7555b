"""Stubs generated from proto/rewardsvc/v1 by `make proto`."""

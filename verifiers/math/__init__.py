"""Checks mathematical answers; see `verifier`."""

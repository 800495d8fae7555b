"""Fixtures that every kind of test may use."""

pytest_plugins = ["fixtures_server", "fixtures_models"]

"""Fixtures that every kind of test may use."""

from hypothesis import settings

# The machines that run this are shared: how long one example takes says nothing.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

pytest_plugins = ["fixtures_server", "fixtures_models"]

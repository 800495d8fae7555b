"""Fixtures that every kind of test may use, and how hypothesis looks for examples."""

from hypothesis import settings

# The machines that run this are shared: how long one example takes says nothing. `make test` asks
# the same examples every time, so that its answer depends on the code alone; `make fuzz` asks new
# ones, and what it finds becomes an explicit example of its test.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("repeatable")

pytest_plugins = ["fixtures_server", "fixtures_client", "fixtures_models"]

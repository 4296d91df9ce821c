"""The same digits set and tools as the tests of the integrations."""

from test_integrations.conftest import digits  # noqa: F401

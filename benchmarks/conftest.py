"""Benchmarks use the servers of the tests."""

from tests.conftest import *  # noqa: F403 - fixtures and hooks are found by their names

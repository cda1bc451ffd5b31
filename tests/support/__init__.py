"""Worlds that tests of several rooms stand on."""

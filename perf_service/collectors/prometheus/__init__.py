"""Engines that a Prometheus already scrapes, read through its HTTP API."""

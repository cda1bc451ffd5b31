"""perf-service: find, explain, fix and prove LLM serving performance problems."""

__version__ = "0.1.0"

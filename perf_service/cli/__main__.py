"""`python -m perf_service.cli`: the same as `perf-service`."""

from perf_service.cli.main import main

main()

"""``python -m perf_service.simulator``: the simulated engine as a program."""

import sys

from perf_service.simulator.args import run_simulated_engine

if __name__ == "__main__":
    sys.exit(run_simulated_engine(sys.argv[1:]))

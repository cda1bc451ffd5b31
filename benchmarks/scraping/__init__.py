"""A fleet to scrape: pages that move, a cheap server of them, our collector, Prometheus, and what each process uses."""

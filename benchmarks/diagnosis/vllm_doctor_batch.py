# mypy: ignore-errors
"""Run by vllm-doctor's own interpreter: reads runs as JSON lines, answers each with vllm-doctor's findings in its own order.

Only the way to the data is replaced: its probes, rules, thresholds and order are its own. A query of its Prometheus mode is
answered from the
first and last page of the run: gauges from the last page, increases and quantiles from the difference, with the replica as the
label ``instance``.
"""

import asyncio
import gzip
import json
import math
import re
import sys

from prometheus_client.parser import text_string_to_metric_families
from vllm_doctor.clients.models import MetricSample
from vllm_doctor.collector import collect
from vllm_doctor.config import RulesConfig
from vllm_doctor.diagnosis import run
from vllm_doctor.rules.utils.registry import build_rules


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            page.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return page


def split(query):
    name, _, rest = query.partition("{")
    return name, dict(re.findall(r'(\w+)="([^"]*)"', rest))


class Pages:
    def __init__(self, replicas):
        self.replicas = [(read(first), read(last)) for first, last in replicas]

    def _samples(self, query, difference):
        name, wanted = split(query)
        for index, (first, last) in enumerate(self.replicas):
            for labels, value in last.get(name, {}).items():
                named = dict(labels)
                if any(named.get(k) != v for k, v in wanted.items()):
                    continue
                if difference:
                    before = first.get(name, {}).get(labels, 0.0)
                    value = value - before if value >= before else value
                named["instance"] = f"replica-{index}"
                yield named, value

    async def query(self, name):
        return [MetricSample(labels=labels, value=value, timestamp=None) for labels, value in self._samples(name, False)]

    async def query_increase(self, name, since):
        return [MetricSample(labels=labels, value=value, timestamp=None) for labels, value in self._samples(name, True)]

    async def query_percentile(self, metric, quantile, model=None, since="5m"):
        buckets = {}
        for labels, value in self._samples(metric + "_bucket", True):
            bound = float(labels["le"].replace("+Inf", "inf"))
            buckets[bound] = buckets.get(bound, 0.0) + value
        bounds = sorted(buckets)
        if not bounds or buckets[bounds[-1]] <= 0:
            return None
        rank, low, below = quantile * buckets[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if buckets[bound] >= rank:
                if math.isinf(bound):
                    return low
                inside = buckets[bound] - below
                return low + (bound - low) * ((rank - below) / inside if inside else 1.0)
            low, below = bound, buckets[bound]
        return None

    async def aclose(self):
        return None


def main():
    rules = build_rules(RulesConfig())
    for line in sys.stdin:
        asked = json.loads(line)
        collected = asyncio.run(collect(Pages(asked["replicas"]), since="5m"))
        found = [(c.id, c.finding.severity.value, c.finding.confidence.value) for c in run(collected.series, rules) if c.finding]
        print(json.dumps({"name": asked["name"], "findings": found}))


main()

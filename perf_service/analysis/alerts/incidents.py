"""What needs no latency to be wrong: hang, restarts, failures, imbalance, a slower version, a page that lost its metrics."""

from __future__ import annotations

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts import texts
from perf_service.analysis.alerts.promql import RANGE, Source
from perf_service.analysis.alerts.rules import Alert, PackOptions, Record, Urgency
from perf_service.analysis.alerts.signals import STALL_RANGE, Names, events, recorded, seconds
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge, Hist

_REJECTIONS_KNOB = {Engine.VLLM: "max_num_queued_reqs", Engine.TGI: "max_concurrent_requests"}


def records(options: PackOptions) -> tuple[Record, ...]:
    """Shares of requests with each bad end, and the load of each replica."""
    r, none = Names(options), f"{Names(options)('served')} * 0"
    counted = {rule.target for rule in Source(options).dialect.rules}

    def rate(counter: Counter) -> str:
        """A counter's rate, 0 where it is not on the page."""
        return f"({r(counter.value, f'rate{RANGE}')} or {none})" if counter in counted else ""

    failed, server = rate(Counter.REQUESTS_FAILED), rate(Counter.HTTP_5XX_RESPONSES)
    rejected, client = rate(Counter.REQUESTS_REJECTED), rate(Counter.HTTP_4XX_RESPONSES)
    if server and rejected:  # a 503 of the engine's own queue limit is told as a rejection
        server = f"clamp_min({server} - {rejected}, 0)"
    failures = f"({failed} > {server} or {server})" if failed and server else failed or server
    found = {recorded("request_failures", f"rate{RANGE}"): failures}
    bad = [r("request_failures", f"rate{RANGE}"), *filter(None, (rejected, client))]
    found[recorded("request_ends", f"rate{RANGE}")] = " + ".join((rate(Counter.REQUESTS_SUCCEEDED), *bad))
    ends = r("request_ends", f"rate{RANGE}")

    def share(name: str, part: str, whole: str = ends) -> None:
        found[recorded(name, f"mean{RANGE}")] = f"{part} / ({whole} > 0)\nand {events(part)} >= {t.EVENTS_MIN.value:g}"

    share("failed_ratio", r("request_failures", f"rate{RANGE}"))
    if rejected:
        share("rejected_ratio", r("requests_rejected", f"rate{RANGE}"))
    if client:
        share("malformed_ratio", r("http_4xx_responses", f"rate{RANGE}"))
    if Counter.REQUESTS_ABORTED in counted:
        begun = r("ttft_seconds", f"count_rate{RANGE}")
        found[recorded("requests_lost", f"rate{RANGE}")] = _lost(options, begun)
        share("aborted_ratio", r("requests_lost", f"rate{RANGE}"), begun)
    return tuple(Record(name, expr) for name, expr in found.items()) + _load(options)


def _lost(options: PackOptions, begun: str) -> str:
    r = Names(options)
    aborted = r("requests_aborted", f"rate{RANGE}")
    if options.engine is not Engine.VLLM:
        return aborted
    # vLLM books a disconnect in no outcome counter: those that got a first token, did not end and do not run.
    present = f"({r('running_requests', f'avg{RANGE}')} + {r('waiting_requests', f'avg{RANGE}')}) / {seconds(RANGE)}"
    vanished = f"({begun} - {r('e2e_seconds', f'count_rate{RANGE}')} - {present})"
    return f"{aborted} >= {vanished}\nor {vanished}"


def _load(options: PackOptions) -> tuple[Record, ...]:
    r = Names(options)
    load = f"{r('running_requests', f'avg{RANGE}')} + {r('waiting_requests', f'avg{RANGE}')}"
    version = ", ".join((*options.service_labels, options.version_label))
    source = Source(options)
    found = [Record(recorded("load_requests", f"avg{RANGE}"), load)]
    for name, expr in (
        (
            "itl_seconds",
            _ratio(source.hist(Hist.ITL_SECONDS, "sum", "30m"), source.hist(Hist.ITL_SECONDS, "count", "30m"), source, version),
        ),
        ("running_requests", _mean_running(source, version)),
    ):
        if expr:
            found.append(Record(recorded(name, "by_version30m"), expr))
    return tuple(found)


def _ratio(total: str | None, count: str | None, source: Source, version: str) -> str | None:
    if total is None or count is None:
        return None
    by = f"sum by ({version})"

    def regrouped(expr: str) -> str:
        return expr.replace(f"sum by ({source.replica})", by)

    return f"({regrouped(total)})\n/\n(({regrouped(count)}) > 0)"


def _mean_running(source: Source, version: str) -> str | None:
    expr = source.gauge(Gauge.RUNNING_REQUESTS, "avg_over_time", "30m")
    return expr.replace(f"sum by ({source.replica})", f"avg by ({version})") if expr else None


def alerts(options: PackOptions) -> tuple[Alert, ...]:
    """The alerts of incidents."""
    return (_hang(options), *_restarting(options), _missing(options), *_failures(options), _imbalance(options), _regression(options))


def _hang(options: PackOptions) -> Alert:
    r, who = Names(options), texts.replica(options)
    running, waiting = r("running_requests", f"min{STALL_RANGE}"), r("waiting_requests", f"min{STALL_RANGE}")
    piling = r("open_file_descriptors", f"delta{RANGE}")
    frozen = "" if options.engine is Engine.TGI else f" or {piling} >= {t.PILED_UP_CLIENTS.value:g}"
    progress = r("progress", f"increase{STALL_RANGE}")
    return Alert(
        "LLMEngineHang",
        # An engine that hangs between two requests freezes its gauges at 0; new clients then show as open connections only.
        f"(({running} + {waiting}) > 0{frozen})\nand {progress} == 0",
        "1m",
        Urgency.CRITICAL,
        Cause.ENGINE_HANG,
        Verdict.RESTART,
        f'{who}: no token for 4 minutes or more although {{{{ $value | printf "%.0f" }}}} requests or new connections wait for one; '
        "/metrics and perhaps /health still answer.",
        "The engine makes no progress although it has work, while its page is alive",
        "no token, no step and no finished request over 4 minutes with requests in flight the whole time"
        + ("" if options.engine is Engine.TGI else ", or ever more open connections"),
        "Keep a stack dump (`py-spy dump`), drain and restart the replica; tuning or scaling does not help a hang.",
    )


def _restarting(options: PackOptions) -> tuple[Alert, ...]:
    r, who = Names(options), texts.replica(options)
    target = ", ".join(options.target_labels)
    up = Source(options).plain("up")
    seen = f"present_over_time({r('served')}[6h])"
    return (
        Alert(
            "LLMEngineRestarting",
            f"{r('restarts', '30m')} >= 2",
            "0m",
            Urgency.CRITICAL,
            "restarts",
            Verdict.NOT_ENOUGH_EVIDENCE,
            f'{who}: started {{{{ $value | printf "%.0f" }}}} times within 30 minutes.',
            "The engine crashes and starts again; one restart is a deployment, more is a loop",
            "2 or more starts of the process (or counters that begin anew) within 30 minutes",
            "Read the log of the previous process (out of memory: lower the memory fraction or the batch and step limits).",
        ),
        Alert(
            "LLMTargetDown",
            f"max by ({target}) ({up}) == 0\nand on ({target}) {seen}",
            "5m",
            Urgency.CRITICAL,
            "target_down",
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"{texts.replica(options)}: cannot be scraped for 5 minutes; it served within the last 6 hours.",
            "A replica that was there does not answer its scrapes",
            "`up` is 0 for 5 minutes on a target that had the engine's metrics within 6 hours",
            "See whether the process runs; a loading model takes minutes, more is a failed start.",
        ),
    )


def _missing(options: PackOptions) -> Alert:
    r, source = Names(options), Source(options)
    served, target = r("served"), ", ".join(options.target_labels)
    # Some engines export a family only after its first observation, so a replica must have had work.
    active = f"({served}\nand max_over_time({r('busy')}[15m]) > 0 or {served} and {r('generation_tokens', f'rate{RANGE}')} > 0)"
    parts = []
    for metric in source.dialect.core:
        label = next(rule.names[0] for rule in source.dialect.rules if rule.target is metric)
        parts.append(f'label_replace({active}\nunless {_signal(r, metric)}, "missing", "{label}", "", "")')
    up = source.plain("up")
    gone = f"max by ({target}) ({up}) == 1\nand on ({target}) present_over_time({served}[6h])\nunless on ({target}) {served}"
    parts.append(f'label_replace({gone}, "missing", "every {source.dialect.prefix}* metric", "", "")')
    return Alert(
        "LLMMetricsMissing",
        "\nor\n".join(parts),
        "15m",
        Urgency.WARNING,
        "metrics_missing",
        Verdict.NOT_ENOUGH_EVIDENCE,
        f"{texts.replica(options)}: {{{{ $labels.missing }}}} is not on its page; alerts that need it are blind.",
        "A metric that the rules read is absent although the engine works: renamed by an upgrade, or statistics are switched off",
        "the page has other metrics of the engine and work was done, or the page answers and all of them are gone",
        "Compare the page with the engine's version; render the pack with a newer perf-service, or switch statistics on again.",
    )


def _signal(r: Names, metric: Gauge | Counter | Hist) -> str:
    """The recorded series that is there exactly as long as the metric is on the page."""
    if isinstance(metric, Gauge):
        return r(metric.value, f"max{RANGE}" if metric is Gauge.KV_CACHE_USAGE_RATIO else f"avg{RANGE}")
    return r(metric.value, f"rate{RANGE}" if isinstance(metric, Counter) else f"count_rate{RANGE}")


def _failures(options: PackOptions) -> list[Alert]:
    r, who = Names(options), texts.replica(options)
    failed, rejected = r("failed_ratio", f"mean{RANGE}"), r("rejected_ratio", f"mean{RANGE}")
    malformed, aborted = r("malformed_ratio", f"mean{RANGE}"), r("aborted_ratio", f"mean{RANGE}")
    low, high = t.ERROR_RATIO.value, t.ERROR_RATIO_HIGH.value
    found = [
        Alert(
            "LLMRequestErrors",
            f"{failed} >= {bound}",
            "5m",
            urgency,
            Cause.REQUEST_ERRORS,
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"{who}: {texts.PERCENT} of its requests fail on the server's side.",
            "Requests fail in the engine or with HTTP 5xx",
            f"failed / all requests >= {low:.0%} (warning), >= {high:.0%} (critical), at least {t.EVENTS_MIN.value:.0f} in 5 minutes",
            "Read the engine's log for the failing requests before tuning anything.",
        )
        for bound, urgency in ((f"{low:g} < {high:g}", Urgency.WARNING), (f"{high:g}", Urgency.CRITICAL))
    ]
    if options.engine is not Engine.SGLANG:  # its refusals are aborts
        found.append(
            Alert(
                "LLMRequestsRejected",
                f"{rejected} >= {low:g}",
                "5m",
                Urgency.WARNING,
                Cause.REJECTIONS,
                Verdict.SCALE,
                f"{who}: refuses {texts.PERCENT} of its requests at its own queue limit.",
                "The engine refuses requests because its queue is full",
                f"rejected / all requests >= {low:.0%}, at least {t.EVENTS_MIN.value:.0f} in 5 minutes",
                f"Add capacity, or raise `{_REJECTIONS_KNOB[options.engine]}` if waiting is acceptable.",
            )
        )
    if options.engine is Engine.TGI:
        return found
    found.append(
        Alert(
            "LLMClientErrors",
            f"{malformed} >= {high:g}",
            "10m",
            Urgency.INFO,
            Cause.REQUEST_ERRORS,
            Verdict.LOOK_AT_CLIENT,
            f"{who}: answers {texts.PERCENT} of its requests with HTTP 4xx; a client sends what the server refuses.",
            "Clients send requests that the server must refuse",
            f"HTTP 4xx / all requests >= {high:.0%}",
            "Find the client; the engine is not at fault.",
        )
    )
    found.append(
        Alert(
            "LLMClientAborts",
            f"{aborted} >= {t.ABORT_RATIO.value:g}",
            "10m",
            Urgency.WARNING,
            Cause.CLIENT_ABORTS,
            Verdict.LOOK_AT_CLIENT,
            f"{who}: {texts.PERCENT} of the clients leave before their answer is complete."
            if options.engine is Engine.VLLM
            else f"{who}: {texts.PERCENT} of the requests are aborted: their clients left, or its full queue refused them.",
            "Clients disconnect or time out before their answer is complete",
            f"requests with a first token and no end >= {t.ABORT_RATIO.value:.0%} (vLLM counts a disconnect nowhere)"
            if options.engine is Engine.VLLM
            else f"aborted / begun requests >= {t.ABORT_RATIO.value:.0%}",
            "Check the clients' timeouts; if requests also wait, cure that first.",
        )
    )
    return found


def _imbalance(options: PackOptions) -> Alert:
    r = Names(options)
    load, waiting = r("load_requests", f"avg{RANGE}"), r("waiting_requests", f"avg{RANGE}")
    by = ", ".join(options.service_labels)
    mean, count = f"avg by ({by}) ({load})", f"count by ({by}) ({load})"
    return Alert(
        "LLMReplicaImbalance",
        f"{load} / on ({by}) group_left () ({mean})\n"
        f">= on ({by}) group_left () clamp_max(0.8 * ({count} > 1), {t.IMBALANCE_RATIO.value:g})\n"
        f"and {load} - on ({by}) group_left () ({mean}) >= {t.IMBALANCE_EXCESS.value:g}\n"
        f"and {waiting} >= {t.WAITING_GAUGE_MIN.value:g}",
        "5m",
        Urgency.WARNING,
        Cause.REPLICA_IMBALANCE,
        Verdict.LOOK_AT_CLIENT,
        f"{texts.replica(options)}: carries {texts.VALUE} times the load of the average replica of its service, and requests wait there.",
        "One replica has the queue while others have room",
        f"running + waiting >= {t.IMBALANCE_RATIO.value:g} times the service's mean (1.6 of two), with a queue",
        "Fix the routing first; flags from an average would be wrong.",
    )


def _regression(options: PackOptions) -> Alert:
    r, label = Names(options), options.version_label
    by = ", ".join(options.service_labels)
    key = f"{by}, {label}"
    itl, running = (_labelled(r(name, "by_version30m"), f'{label}!=""') for name in ("itl_seconds", "running_requests"))
    same = t.LOAD_SAME_RATIO.value

    def change(metric: str) -> str:
        new = f"({metric} unless on ({key}) {metric} offset 1d)"
        return f"{new} / on ({by}) group_left () avg by ({by}) ({metric} offset 1d)"

    return Alert(
        "LLMUpgradeRegression",
        f"{change(itl)} >= {t.REGRESSION_RATIO.value:g}\n"
        f"and on ({key}) ({change(running)} <= {same:g} and {change(running)} >= {1 / same:g})",
        "30m",
        Urgency.WARNING,
        Cause.UPGRADE_REGRESSION,
        Verdict.ROLL_BACK_UPGRADE,
        f'{texts.service(options)}: version {{{{ $labels.{label} }}}} takes {{{{ $value | printf "%.2f" }}}} times as long per token as '
        "yesterday's, at the same load.",
        "A new version is slower at the same load",
        f"time per token of a version that was not there a day ago >= {t.REGRESSION_RATIO.value:g} times that of the old one, "
        f"running requests per replica within {same:g}. Needs a target label with the version (`--version-label`)",
        "Pin or roll back the version and report the regression; do not tune around it.",
    )


def _labelled(selector: str, matcher: str) -> str:
    return f"{selector[:-1]},{matcher}}}"

"""One situation from its draw to our answers and the hand rules': simulated or cached, labelled, analyzed with and without launch args."""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from benchmarks.diagnosis import peers, traps
from benchmarks.diagnosis.drawing import Draw, Objective, Situation
from benchmarks.diagnosis.labels import Label, label, objectives, paced
from benchmarks.diagnosis.running import RUNNING_VERSION, Page, Run, Seen, run
from benchmarks.diagnosis.situations import Maker
from perf_service.analysis.engine import AnalysisEngine, analyze_fleet
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.collectors.window import lifetime_window, overall_window
from perf_service.models.analysis import Analysis, Cause, Severity, Verdict
from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.metrics import Engine, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.simulator.args import native_values

ROOT = Path(__file__).parents[2]
RIGHT, WRONG, ABSTAINED = "right", "wrong", "abstained"


@dataclass(frozen=True)
class Told:
    """What the analyzer said, as far as it is scored."""

    grade: str
    cause: str  # "-": none
    verdict: str
    severity: str  # the worst of all findings, "-" without one
    confidence: float
    causes: tuple[str, ...]  # of all findings that are not symptoms
    both_named: bool
    loud: bool
    text: str


@dataclass(frozen=True)
class Outcome:
    """A scored situation (or real run)."""

    name: str
    kind: str
    engine: str
    group: str  # fault, two, fine, trap, dropped
    label: Label
    truth: str
    with_args: Told | None = None
    without_args: Told | None = None
    peers: dict[str, tuple[str, tuple[str, ...], bool]] = field(default_factory=dict)  # peer -> grade, answer, alarm
    why: str = ""
    facts: str = ""


# -- cache --------------------------------------------------------------------------------------------


@cache
def simulation_hash() -> str:
    """Changes whenever a simulated page could."""
    files = [*sorted((ROOT / "perf_service" / "simulator").rglob("*.py")), *sorted((ROOT / "perf_service" / "simulator").rglob("*.prom"))]
    return _hash(RUNNING_VERSION, *(file.read_bytes() for file in files))


def rules_hash() -> str:
    """Names the rules a result was made with: all that stands between a page and a verdict."""
    folders = [ROOT / "perf_service" / name for name in ("analysis", "collectors", "collectors/dialects", "models")]
    return _hash(*(file.read_bytes() for folder in folders for file in sorted(folder.glob("*.py"))))


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


class Simulations:
    """The runs of one situation and its variants, kept on disk under the hash of the simulator."""

    def __init__(self, s: Situation, folder: Path | None) -> None:
        self._s = s
        self._file = folder / simulation_hash() / f"{_hash(s.key.encode())}.bin" if folder else None
        self._pages: list[list[Page]] | None = None
        self._seen: dict[str, Seen] = {}
        self._changed = False
        if self._file is not None and self._file.exists():
            self._pages, self._seen = pickle.loads(zlib.decompress(self._file.read_bytes()))

    def observed(self) -> list[list[Page]]:
        """The pages that the analyzer gets, trap and all."""
        if self._pages is None:
            done: Run = run(self._s)
            self._pages, self._changed = done.replicas, True
            if not self._s.trap:
                self._seen[_variant("base", self._s)] = done.seen
        return self._pages

    def measure(self, name: str, make: Callable[[], Situation]) -> Seen:
        """What the clients of a variant saw."""
        variant = make()
        key = _variant(name, variant)
        if key not in self._seen:
            self._seen[key] = run(variant, pages=False).seen
            self._changed = True
        return self._seen[key]

    def save(self) -> None:
        if self._file is None or not self._changed:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_bytes(zlib.compress(pickle.dumps((self._pages, self._seen)), 3))
        part.replace(self._file)


def _variant(name: str, s: Situation) -> str:
    return f"{name}:{_hash(replace(s, kind='', wishes=()).key.encode())}"


# -- analysis -----------------------------------------------------------------------------------------


def snapshots_of(engine: str, pages: Sequence[Page], name: str) -> list[Snapshot]:
    builder = SnapshotBuilder(Engine(engine))
    return [builder.build(text.encode(), name, when, engine_version=version) for when, text, version in pages]


def analyze(replicas: Sequence[Sequence[Snapshot]], targets: Sequence[SLOTarget], config: EngineConfig | None) -> Analysis:
    """As the service would: one instance, or a fleet of them."""
    if len(replicas) == 1:
        return AnalysisEngine().analyze(replicas[0], None, targets, config=config)
    return analyze_fleet({f"replica-{i}": pages for i, pages in enumerate(replicas)}, None, targets, config=config)


def launch_args(s: Situation) -> EngineConfig:
    """Every flag of the launch, under the engine's own names."""
    values: dict[str, KnobValue] = {name: value for name, value in native_values(s.flags).items() if value is not None}
    return EngineConfig.of(values, Source.LAUNCH_ARGS)


def targets_of(s: Situation, goals: Sequence[Objective], seen_tokens_per_second: float) -> list[SLOTarget]:
    """The objectives that are told; none where the built-in ones count."""
    targets = [SLOTarget(goal.name, goal.bound) for goal in goals] if s.wishes else []
    if s.trap == "client_limited":
        targets.append(SLOTarget("throughput", round(seen_tokens_per_second * s.trap_value, 1), "greater_than"))
    return targets


def told(analysis: Analysis, truth: Label, right: Callable[[Analysis, Label], bool]) -> Told:
    """The graded answer."""
    root = analysis.root_cause
    grade = RIGHT if right(analysis, truth) else WRONG
    unsure = analysis.verdict in (Verdict.WAIT, Verdict.NOT_ENOUGH_EVIDENCE) or (root is not None and root.cause is Cause.UNKNOWN)
    if grade is WRONG and unsure and truth.status == "fault":
        grade = ABSTAINED
    worst = max((b.severity for b in analysis.bottlenecks), key=lambda level: level.rank, default=None)
    named = {b.cause for b in analysis.bottlenecks} | {b.alternative for b in analysis.bottlenecks if b.alternative}
    return Told(
        grade,
        root.cause.value if root else "-",
        analysis.verdict.value,
        worst.value if worst else "-",
        root.confidence_ratio if root else 1.0,
        tuple(dict.fromkeys(b.cause.value for b in analysis.bottlenecks if b.symptom_of is None)),
        bool(truth.both) and set(truth.both) <= named,
        worst in (Severity.HIGH, Severity.CRITICAL),
        analysis.summary,
    )


def right_cause(analysis: Analysis, truth: Label) -> bool:
    """A fault is named, or a sound engine left in peace."""
    if truth.status == "fine":
        return traps.calm(analysis)
    return traps.cause_of(analysis) in truth.accepted


# -- peers on the same pages --------------------------------------------------------------------------

#: What a peer must say in a trap; all others ask for silence (or the cause where a fault lies below).
TRAP_CAUSES = {
    "hang": (Cause.ENGINE_HANG,), "upgrade": (Cause.UPGRADE_REGRESSION,), "mass_aborts": (Cause.CLIENT_ABORTS,),
    "contradictory": (Cause.DECODE_BOUND, Cause.PREFILL_COMPUTE, Cause.OVERLOAD),
    "trade_off": (Cause.DECODE_BOUND, Cause.PREFILL_COMPUTE, Cause.OVERLOAD),
}  # fmt: skip


def peer_grade(answer: tuple[str, ...], truth: Label, trap: str) -> str:
    """Right when one of the causes is true, or silence is."""
    accepted = TRAP_CAUSES.get(trap)
    if accepted is None and truth.status == "fault" and trap != "stale":
        accepted = truth.accepted
    if accepted is None:
        return RIGHT if not answer else WRONG
    return RIGHT if {cause.value for cause in accepted} & set(answer) else WRONG


def _baselines(
    trap: str, truth: Label, replicas: list[list[Snapshot]], targets: Sequence[SLOTarget]
) -> dict[str, tuple[str, tuple[str, ...], bool]]:
    window = overall_window(replicas[0]) if len(replicas[0]) > 1 else None
    hand = peers.hand_rules(window or lifetime_window(replicas[0][-1]), targets)
    return {
        "hand rules": (peer_grade(hand, truth, trap), hand, bool(hand)),
        "always more sequences": (peer_grade(peers.MORE_SEQS, truth, trap), peers.MORE_SEQS, True),
    }


# -- one situation ------------------------------------------------------------------------------------


def judge(seed: int, maker: Maker, wide: bool, folder: Path | None) -> tuple[Outcome, list[list[Page]]]:
    """Draws, runs, labels and analyzes one situation. Pages are given back for peers that read them elsewhere."""
    s = maker(Draw(seed, wide))
    runs = Simulations(s, folder)
    pages = runs.observed()
    settled = traps.after_step(s) if s.trap else s
    goals = objectives(settled, runs.measure)
    truth = label(settled, goals, runs.measure)
    if not paced(runs.measure("base", lambda: replace(settled, trap=""))):
        goals = tuple(goal for goal in goals if goal.metric != "itl")
    tokens = runs.measure("base", lambda: replace(settled, trap="")).tokens_per_second if s.trap == "client_limited" else 0.0
    runs.save()
    why = traps.sits(s, truth) if s.trap else truth.why if truth.status == "dropped" else ""
    facts = f"{s.flags} {s.times} {s.workload} {s.duration}s {goals} {truth.gains} badness {truth.badness:.2f}"
    if why:
        return Outcome(str(seed), s.kind, s.engine, "dropped", truth, "dropped", why=why, facts=facts), pages
    group = "trap" if s.trap else "two" if s.kind.startswith("two:") and len(truth.accepted) > 1 else truth.status
    scraped = [traps.tampered(s, some) for some in pages]
    if s.kind == "rank_imbalance":
        scraped = [as_ranks(scraped)]
    outcome = answers(
        name=str(seed),
        kind=s.kind,
        engine=s.engine,
        group=group,
        truths=(truth, truth),
        pages=scraped,
        targets=targets_of(settled, goals, tokens),
        config=launch_args(s),
        right=traps.CHECKS[s.kind.removeprefix("trap:")] if s.trap else right_cause,
        trap=s.trap,
        facts=facts,
    )
    return outcome, scraped


def as_ranks(replicas: Sequence[Sequence[Page]]) -> list[Page]:
    """The pages of several vLLM engines as one page per scrape, told apart by the label ``engine``."""
    merged = []
    for pages in zip(*replicas, strict=True):
        when, text, version = pages[0]
        for rank, (_, other, _) in enumerate(pages[1:], 1):
            own = (line for line in other.splitlines() if line.startswith("vllm:") and 'engine="0"' in line)
            text += "".join(line.replace('engine="0"', f'engine="{rank}"') + "\n" for line in own)
        merged.append((when, text, version))
    return merged


def answers(
    *,
    name: str,
    kind: str,
    engine: str,
    group: str,
    truths: tuple[Label, Label],
    pages: Sequence[Sequence[Page]],
    targets: Sequence[SLOTarget],
    config: EngineConfig,
    right: Callable[[Analysis, Label], bool],
    trap: str,
    facts: str = "",
) -> Outcome:
    """Our answers (with and without launch args, against their truths) and the baselines'."""
    replicas = [snapshots_of(engine, some, f"replica-{i}") for i, some in enumerate(pages)]
    known, hidden = truths
    with_args = told(analyze(replicas, targets, config), known, right)
    without = told(analyze(replicas, targets, None), hidden, right)
    beside = _baselines(trap, hidden, replicas, targets)
    return Outcome(name, kind, engine, group, hidden, kind if trap else hidden.name, with_args, without, beside, facts=facts)

"""From outcomes to tables: confusion matrix, Wilson intervals, risk against coverage, traps, peers, the worst cases."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence

from benchmarks.diagnosis.judging import ABSTAINED, RIGHT, WRONG, Outcome, Told

FAULTY = ("fault", "two")
_Z = 1.959964  # 95 %, two-sided


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson (1927); (0, 1) without trials."""
    if n <= 0:
        return 0.0, 1.0
    p, z2 = hits / n, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(hits: int, n: int) -> str:
    """``41/42 97.6 % (87.7 .. 99.6)``."""
    if not n:
        return "0/0"
    low, high = wilson(hits, n)
    return f"{hits}/{n} {100 * hits / n:.1f} % ({100 * low:.1f} .. {100 * high:.1f})"


Pick = Callable[[Outcome], Told | None]


def with_args(o: Outcome) -> Told | None:
    return o.with_args


def without_args(o: Outcome) -> Told | None:
    return o.without_args


MODES: tuple[tuple[str, Pick], ...] = (("args known", with_args), ("args hidden", without_args))


def graded(outcomes: Iterable[Outcome], pick: Pick) -> list[tuple[Outcome, Told]]:
    return [(o, t) for o in outcomes if (t := pick(o)) is not None]


def accuracy(pairs: Sequence[tuple[Outcome, Told]]) -> str:
    """Right among the answered, and how many were abstained from."""
    grades = Tally(t.grade for _, t in pairs)
    answered = grades[RIGHT] + grades[WRONG]
    return f"{share(grades[RIGHT], answered)}; abstained {grades[ABSTAINED]}; of all {share(grades[RIGHT], len(pairs))}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [f"\n{title}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows])


def confusion(outcomes: Sequence[Outcome], pick: Pick) -> list[tuple[str, str, int]]:
    """(truth, named, count); where several are accepted and one of them was named, the truth is that one."""
    cells: Tally[tuple[str, str]] = Tally()
    for o, t in graded(outcomes, pick):
        if o.group in FAULTY or o.group == "fine":
            cells[o.truth if t.grade != RIGHT or o.group == "fine" else _shown(o, t), t.cause] += 1
    return [(truth, named, n) for (truth, named), n in sorted(cells.items())]


def _shown(o: Outcome, t: Told) -> str:
    return o.truth if o.label.no_flag else t.cause


def risk_coverage(outcomes: Sequence[Outcome], pick: Pick) -> list[tuple[str, str, str]]:
    """Share answered and share wrong among them, if answers below a confidence were held back too."""
    pairs = [(o, t) for o, t in graded(outcomes, pick) if o.group in FAULTY]
    rows = []
    for least in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9):
        told = [t for _, t in pairs if t.grade != ABSTAINED and t.confidence >= least]
        wrong = sum(t.grade == WRONG for t in told)
        rows.append((f">= {least:.1f}", share(len(told), len(pairs)), share(wrong, len(told))))
    return rows


def worst(outcomes: Sequence[Outcome], count: int = 5) -> list[tuple[Outcome, str, Told]]:
    """The wrong answers with the highest confidence, each situation once."""
    wrong = [(t.confidence, o.name, o, mode, t) for mode, pick in MODES for o, t in graded(outcomes, pick) if t.grade == WRONG]
    found: list[tuple[Outcome, str, Told]] = []
    for _, name, o, mode, t in sorted(wrong, key=lambda w: (-w[0], w[1], w[3])):
        if all(other.name != name for other, _, _ in found):
            found.append((o, mode, t))
    return found[:count]


def peer_names(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(name for o in outcomes for name in o.peers))


def peer_cell(outcomes: Sequence[Outcome], name: str) -> str:
    answers = [o.peers[name] for o in outcomes if name in o.peers]
    return share(sum(grade == RIGHT for grade, _, _ in answers), len(answers)) if answers else "-"


def peer_alarms(outcomes: Sequence[Outcome], name: str) -> str:
    answers = [o.peers[name] for o in outcomes if name in o.peers]
    return share(sum(alarm for _, _, alarm in answers), len(answers)) if answers else "-"


def report(outcomes: Sequence[Outcome], title: str) -> str:
    """Every table of one set."""
    kept = [o for o in outcomes if o.group != "dropped"]
    faults = [o for o in kept if o.group in FAULTY]
    fine = [o for o in kept if o.group == "fine"]
    trapped = [o for o in kept if o.group == "trap"]
    both = [o for o in faults if o.label.both]
    out = [f"\n## {title}: {len(outcomes)} drawn, {len(kept)} labelled"]
    dropped = Tally(o.why for o in outcomes if o.group == "dropped")
    if dropped:
        out.append("Dropped: " + ", ".join(f"{why} {n}" for why, n in dropped.most_common()))
    rows: list[Sequence[object]] = []
    for mode, pick in MODES:
        for engine in ("all", *sorted({o.engine for o in faults})):
            some = [o for o in faults if engine in ("all", o.engine)]
            rows.append((mode, engine, accuracy(graded(some, pick))))
    out.append(
        table("Root cause of faults (right among the answered; abstained; right among all; Wilson 95 %)", ("", "engine", "right"), rows)
    )
    rows = []
    for truth in sorted({true_of(o) for o in faults}):
        some = [o for o in faults if true_of(o) == truth]
        rows.append((truth, *(f"{sum(t.grade == RIGHT for _, t in graded(some, pick))}/{len(some)}" for _, pick in MODES)))
    if rows:
        out.append(table("The same by what is true (accepted causes)", ("true", *(mode for mode, _ in MODES)), rows))
    rows = [(mode, share(sum(t.loud for _, t in graded(fine, pick)), len(fine)), accuracy(graded(fine, pick))) for mode, pick in MODES]
    out.append(table("Healthy or idle", ("", "false alarms (HIGH or CRITICAL)", "left in peace"), rows))
    if both:
        rows = [(mode, share(sum(t.both_named for _, t in graded(both, pick)), len(both))) for mode, pick in MODES]
        out.append(table("Two causes, both named", ("", "share"), rows))
    if trapped:
        rows = []
        for kind in sorted({o.kind for o in trapped}):
            some = [o for o in trapped if o.kind == kind]
            cells = [f"{sum(t.grade == RIGHT for _, t in graded(some, pick))}/{len(some)}" for _, pick in MODES]
            rows.append((kind.removeprefix("trap:"), *cells, *(peer_short(some, name) for name in peer_names(trapped))))
        total = [share(sum(t.grade == RIGHT for _, t in graded(trapped, pick)), len(trapped)) for _, pick in MODES]
        rows.append(("all", *total, *(peer_cell(trapped, name) for name in peer_names(trapped))))
        out.append(table("Traps", ("trap", *(mode for mode, _ in MODES), *peer_names(trapped)), rows))
    names = peer_names(kept)
    if names:
        rows = [(name, peer_cell(faults, name), peer_alarms(fine, name), peer_cell(trapped, name)) for name in names]
        ours = [share(sum(t.grade == RIGHT for _, t in graded(some, without_args)), len(some)) for some in (faults, trapped)]
        rows.append(
            ("**this service**, args hidden", ours[0], share(sum(t.loud for _, t in graded(fine, without_args)), len(fine)), ours[1])
        )
        only = [o for o in kept if "vllm-doctor" in o.peers]
        if only and len(only) < len(kept):
            parts = [[o for o in only if o.group in FAULTY], [o for o in only if o.group == "fine"], [o for o in only if o.group == "trap"]]
            cells = [share(sum(t.grade == RIGHT for _, t in graded(some, without_args)), len(some)) for some in parts]
            loud = share(sum(t.loud for _, t in graded(parts[1], without_args)), len(parts[1]))
            rows.append(("**this service**, on vllm-doctor's runs", cells[0], loud, cells[2]))
        out.append(table("Peers (right among all)", ("", "root cause of faults", "alarms when healthy", "traps"), rows))
    for mode, pick in MODES:
        out.append(table(f"Confusion, {mode}", ("true", "named", "n"), confusion(kept, pick)))
        if faults:
            out.append(table(f"Risk against coverage, {mode}", ("confidence", "answered", "wrong among them"), risk_coverage(kept, pick)))
    rows = [
        (o.name, o.kind, o.engine, mode, true_of(o), t.cause, f"{t.confidence:.2f}", t.text[:160], why(o)) for o, mode, t in worst(kept)
    ]
    head = ("run", "kind", "engine", "mode", "true", "named", "confidence", "what it said", "what the experiments said")
    out.append(table("Worst cases: wrong with the highest confidence", head, rows))
    return "\n".join(out)


def true_of(o: Outcome) -> str:
    return o.truth if o.group == "trap" else "|".join(cause.value for cause in o.label.accepted) or o.truth


def why(o: Outcome) -> str:
    """The fixes that were tried, best first, by what they make better (a ratio over all missed objectives)."""
    best = sorted(o.label.gains, key=lambda item: -item[1])[:3]
    tried = ", ".join(f"{name} x{math.exp(gain):.1f}" for name, gain in best)
    return tried and f"objectives missed x{math.exp(o.label.badness):.1f}; better by {tried}"


def peer_short(outcomes: Sequence[Outcome], name: str) -> str:
    answers = [o.peers[name] for o in outcomes if name in o.peers]
    return f"{sum(grade == RIGHT for grade, _, _ in answers)}/{len(answers)}" if answers else "-"

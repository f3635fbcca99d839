"""Numbers and verdicts as people read them; the same words in the terminal, the page and MLflow."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

from pipeline.transfer.results import Comparison, Cost, Pair, Row
from pipeline.transfer.statistics import Interval

MINUS = "\N{MINUS SIGN}"
LONGEST_NAME = 48


def printable(text: object) -> str:
    """`text` on one line, without control and direction characters.

    Names of classes and datasets come from directories and files of others. HTML escaping is the
    template's part; this keeps them from breaking tables, plots and the order of letters on a line.
    """
    line = " ".join(str(text).split())
    return "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def clean(name: object, longest: int = LONGEST_NAME) -> str:
    """A name, printable and cut to `longest` characters."""
    text = printable(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def clean_end(name: object, longest: int) -> str:
    """As `clean`, but what is kept is the end: of a path it says which file."""
    text = printable(name)
    return text if len(text) <= longest else "…" + text[1 - longest :]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def signed(value: float, digits: int = 1) -> str:
    """`value` with its sign; a value that rounds to zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def bounds(interval: Interval | None, digits: int = 1) -> str:
    """`2.1 to 3.4`, negative numbers with a minus sign."""
    if interval is None:
        return "–"
    low, high = (f"{value:.{digits}f}".replace("-", MINUS) for value in (interval.low, interval.high))
    return f"{low} to {high}"


def p_value(p: float | None) -> str:
    """`p = 0.012`, `p < 0.0001`."""
    if p is None:
        return "–"
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def quantity(value: float, unit: str) -> str:
    """`value` with three figures and a prefix: 1.23 M images."""
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{prefix} {unit}".strip()
    return f"{value:.3g} {unit}".strip()


def exaflops(value: float) -> str:
    """Floating-point operations with a prefix that fits: small runs are far below an exaFLOP."""
    for factor, prefix in ((1.0, "exa"), (1e-3, "peta"), (1e-6, "tera"), (1e-9, "giga")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}FLOP"
    return f"{value / 1e-12:.3g} megaFLOP" if value else "–"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def verdicts(comparison: Comparison) -> list[str]:
    """One sentence for each pair."""
    return [_verdict(comparison, pair) for pair in comparison.pairs]


def tally(comparison: Comparison) -> list[str]:
    """For each challenger how its verdicts are spread, where there is more than one."""
    lines = []
    for challenger in dict.fromkeys(pair.challenger for pair in comparison.pairs):
        found = Counter(pair.verdict for pair in comparison.pairs if pair.challenger == challenger)
        if found.total() > 1:
            parts = [f"{verdict} on {number}" for verdict, number in found.most_common()]
            lines.append(
                f"{clean(challenger)} against {clean(comparison.baseline)} on {found.total()} datasets: "
                f"{', '.join(parts)}."
            )
    return lines


def _verdict(comparison: Comparison, pair: Pair) -> str:
    challenger, baseline, dataset = clean(pair.challenger), clean(pair.baseline), clean(pair.dataset)
    if pair.verdict == "not comparable":
        reason = printable("; ".join(pair.marks) or pair.test)
        return f"{challenger} and {baseline} cannot be compared on {dataset}: {reason}."
    size = f"{abs(pair.delta_pp):.1f} pp"
    head = {
        "better": f"{challenger} is better than {baseline} on {dataset} by {size}",
        "worse": f"{challenger} is worse than {baseline} on {dataset} by {size}",
        "equivalent": f"{challenger} and {baseline} are equivalent on {dataset} within"
        f" {comparison.margin_pp or 0:g} pp: {signed(pair.delta_pp)} pp",
        "no difference shown": f"No difference shown between {challenger} and {baseline} on {dataset}:"
        f" {signed(pair.delta_pp)} pp",
    }[pair.verdict]
    return f"{head} ({evidence(comparison, pair)}){_price(comparison, pair)}."


def evidence(comparison: Comparison, pair: Pair) -> str:
    """What a verdict rests on."""
    tests = sum(other.p is not None for other in comparison.pairs)
    seeds = "1 seed" if pair.seeds == 1 else f"{pair.seeds} seeds"
    holm = f", Holm over {tests} comparisons" if tests > 1 else ""
    tested = f"{pair.test} {p_value(pair.p_holm)}{holm}"
    return f"95 % CI {bounds(pair.interval_pp)}, n {count(pair.n)}, {tested}, {seeds}"


def _price(comparison: Comparison, pair: Pair) -> str:
    rows = [comparison.row(pair.dataset, label) for label in (pair.challenger, pair.baseline)]
    amounts = [compute_of(row.cost)[0] for row in rows if row is not None]
    if len(amounts) < 2 or not all(amounts) or math.isclose(amounts[0], amounts[1], rel_tol=0.005):
        return ""
    return f", at {amounts[0] / amounts[1]:.3g} × the training compute"


def compute_of(cost: Cost) -> tuple[float, str]:
    """Compute of trainings and its unit: exaFLOPs where they were counted, else images seen."""
    return (cost.exaflops, "exaFLOP") if cost.exaflops > 0 else (cost.images, "images")


def device_hours(cost: Cost) -> str:
    """Hours × devices, in three digits; a dash where they were not counted."""
    return "–" if math.isnan(cost.device_hours) else f"{cost.device_hours:.3g}"


def seeds_of(row: Row) -> str:
    """`3`, marked when there are too few to say how much the seed matters."""
    return f"{len(row.seeds)}" if len(row.seeds) > 2 else f"{len(row.seeds)} (few)"

"""The run over time: a line for each stage with a bar for each attempt of each job, faults marked.

Time in which nothing ran is cut to a gap that says how long it was, so that a run that was continued a week
later can still be read. Below it the pre-training's time by what it went to.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.figures import COLOURS, WIDE, Drawing, new_figure, render, series_colour, style
from pipeline.report.sheet import Line, Sheet
from pipeline.report.timeline import MOST_INCIDENTS, Span, Timeline
from pipeline.report.words import clean, duration, percent
from pipeline.train.goodput import CAUSES, Goodput

_LONG_GAP = 0.08  # of the busy time: a longer gap is cut to this
_LOSSES = (0, 1, 3, 4, 5)  # colours
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
CAUSE_WORDS = {
    "start": "starting",
    "compile": "first step",
    "data": "waiting for data",
    "save": "saving",
    "validate": "validating",
    "redone": "steps done again",
    "down": "between attempts",
}


@dataclass(frozen=True)
class Axis:
    """Unix time → seconds of the picture, where long gaps are cut; `cuts`: (place, seconds of the gap)."""

    blocks: tuple[tuple[float, float, float], ...]  # begin, end, place of the begin
    cuts: tuple[tuple[float, float], ...]

    @property
    def length(self) -> float:
        begin, end, place = self.blocks[-1]
        return place + end - begin

    def place(self, time: float) -> float:
        for begin, end, place in self.blocks:
            if time <= end:
                return place + max(0.0, time - begin)
        return self.length


def cut_gaps(spans: Sequence[Span]) -> Axis:
    """The axis on which these spans are drawn."""
    merged: list[list[float]] = []
    for span in sorted(spans, key=lambda span: span.begin):
        if merged and span.begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], span.end)
        else:
            merged.append([span.begin, span.end])
    limit = _LONG_GAP * max(1e-9, sum(end - begin for begin, end in merged))
    blocks, cuts = [], []
    place, before = 0.0, merged[0][0]
    for begin, end in merged:
        gap = begin - before
        if gap > limit:
            cuts.append((place + limit / 2, gap))
        place += min(gap, limit)
        blocks.append((begin, end, place))
        place, before = place + end - begin, end
    return Axis(tuple(blocks), tuple(cuts))


def timeline_plot(timeline: Timeline) -> Drawing:
    """Stages from top to bottom in the order in which they began."""
    stages = list(dict.fromkeys(span.stage for span in timeline.spans))
    axis = cut_gaps(timeline.spans)
    unit, name = next(((s, word) for s, word in _UNITS if axis.length >= 1.5 * s), _UNITS[-1])
    with_goodput = timeline.goodput is not None
    with style():
        figure = new_figure(WIDE, 0.9 + 0.34 * len(stages) + 0.95 * with_goodput)
        ratios = [0.5 + 0.34 * len(stages), 0.5]
        both = figure.subplots(2, 1, height_ratios=ratios) if with_goodput else [figure.subplots()]
        axes = both[0]
        for span in timeline.spans:
            row = stages.index(span.stage)
            begin, end = axis.place(span.begin) / unit, axis.place(span.end) / unit
            axes.barh(
                row,
                max(end - begin, 0.002 * axis.length / unit),
                left=begin,
                height=0.52,
                color=series_colour(row),
                alpha=0.55,
                linewidth=0,
            )
        for place, missing in axis.cuts:
            axes.axvline(place / unit, color=COLOURS["muted"], linestyle=":", linewidth=1)
            axes.annotate(
                f"{duration(missing)} idle",
                (place / unit, -0.62),
                fontsize=7.5,
                ha="center",
                color=COLOURS["muted"],
            )
        _mark(axes, timeline, stages, axis, unit)
        axes.set_yticks(range(len(stages)), [clean(stage, 16) for stage in stages], color=COLOURS["ink"])
        axes.set_ylim(len(stages) - 0.4, -0.9 if axis.cuts else -0.6)
        axes.set_xlim(-0.01 * axis.length / unit, 1.01 * axis.length / unit)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{name} since the first job" + (", without idle time" if axis.cuts else ""))
        if timeline.goodput is not None:
            _goodput(both[1], timeline.goodput)
        return render(figure, "timeline", "The jobs of the run over time, and where pre-training's time went")


def _mark(axes: Any, timeline: Timeline, stages: Sequence[str], axis: Axis, unit: float) -> None:
    for is_fault, marker, size in ((True, "x", 6.5), (False, "|", 9)):
        own = [i for i in timeline.incidents if i.is_fault == is_fault]
        if own:
            axes.plot(
                [axis.place(i.time) / unit for i in own],
                [stages.index(i.stage) for i in own],
                marker=marker,
                color=COLOURS["ink"],
                linestyle="",
                markersize=size,
                zorder=3,
            )


def _goodput(axes: Any, found: Goodput) -> None:
    """One bar: the useful time first, then each loss that is not nothing."""
    left = 0.0
    parts = [("useful", found.share * found.total_s)]
    parts += [(CAUSE_WORDS[cause], found.lost_s[cause]) for cause in CAUSES]
    shown = [(word, seconds / found.total_s) for word, seconds in parts if seconds > 0.002 * found.total_s]
    for index, (word, share) in enumerate(shown):
        # Useful time in one colour, losses in the others, which their words tell apart too.
        colour = series_colour(2 if index == 0 else _LOSSES[(index - 1) % len(_LOSSES)])
        axes.barh(
            0,
            100 * share,
            left=100 * left,
            height=0.6,
            color=colour,
            alpha=0.75 if index == 0 else 0.55,
            linewidth=0,
            label=f"{word} {percent(share)}",
        )
        left += share
    axes.set_yticks([0], ["pre-training"], color=COLOURS["ink"])
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of its time, %")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 0.95), ncols=min(6, len(shown)), fontsize=7.5, borderaxespad=0.2
    )


def goodput_sheet(found: Goodput) -> Sheet:
    """Seconds and share of each part of a training's time."""
    useful = found.share * found.total_s
    lines = [Line(["useful", duration(useful), percent(found.share)])]
    lines += [
        Line(
            [CAUSE_WORDS[cause], duration(found.lost_s[cause]), percent(found.lost_s[cause] / found.total_s)]
        )
        for cause in CAUSES
        if found.total_s
    ]
    lines.append(Line(["in all", duration(found.total_s), ""], rule=True))
    return Sheet(("pre-training's time", "time", "share"), lines)


def incident_sheet(timeline: Timeline) -> Sheet:
    """Faults, restarts and warnings, the first MOST_INCIDENTS of them."""
    lines = [
        Line([_clock(i.time), clean(i.job, 48), "fault" if i.is_fault else "", clean(i.what, 160)])
        for i in timeline.incidents[:MOST_INCIDENTS]
    ]
    more = len(timeline.incidents) - len(lines)
    if more > 0:
        lines.append(Line(["", "", "", f"and {more} more: see events.jsonl of the jobs"], rule=True))
    return Sheet(("time (UTC)", "job", "", "what happened"), lines, (0, 1, 2, 3))


def span_sheet(timeline: Timeline) -> Sheet:
    """When each stage began and ended."""
    lines = []
    for stage in dict.fromkeys(span.stage for span in timeline.spans):
        own = [span for span in timeline.spans if span.stage == stage]
        begin, end = min(span.begin for span in own), max(span.end for span in own)
        lines.append(
            Line(
                [
                    stage,
                    _clock(begin),
                    _clock(end),
                    str(len(own)),
                    duration(sum(s.end - s.begin for s in own)),
                ]
            )
        )
    return Sheet(
        ("stage", "first began (UTC)", "last ended (UTC)", "attempts", "time, summed"), lines, (0, 1, 2)
    )


def _clock(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")

"""What the page says: its sections in the order in which they are read, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import yaml

from pipeline.report import frontier, insight_sheets, plots, seen, sheets, spent_sheets
from pipeline.report.calibration import reliability_diagram, reliability_sheet
from pipeline.report.curves import Curve
from pipeline.report.gather import Facts
from pipeline.report.insight import Insight
from pipeline.report.left_out import left_out_lines
from pipeline.report.parts import Panel, Section
from pipeline.report.sheet import Line, Sheet
from pipeline.report.tables import MEAN_HEADS, mean_cells
from pipeline.report.words import clean, count
from pipeline.transfer.comparison import Comparison

# Picture of insight.py → caption, table, whether it takes the whole width.
_PICTURES: dict[str, tuple[str, Callable[[Insight], Sheet], bool]] = {
    "rollout": (
        "Where the output's attention comes from, through all layers (attention rollout): as brightness, and "
        "by patch from dark (none) to light (most of this image). Some of {source}.",
        insight_sheets.rollout_sheet,
        True,
    ),
    "distance": (
        "How far each head looks: the distance to the patches it attends to, mean over {source}. Dotted: "
        "attention that is even over all patches.",
        insight_sheets.distance_sheet,
        True,
    ),
    "positions": (
        "Similarity of the position embedding of a patch (one tile) with those of all patches.",
        insight_sheets.positions_sheet,
        False,
    ),
    "filters": (
        "The first principal components of the patch filters with their share of the variance; grey is zero.",
        insight_sheets.filters_sheet,
        False,
    ),
}


def sections(facts: Facts) -> list[Section]:
    """All sections that have something to say."""
    parts = (
        _results,
        _compute,
        _curves,
        _choices,
        seen.classes,
        seen.hardest,
        _calibration,
        _insight,
        seen.data,
        seen.timeline,
        _run,
        _limits,
    )
    return [section for part in parts for section in part(facts)]


def _results(facts: Facts) -> Iterator[Section]:
    comparison = facts.comparison
    figures = []
    if comparison.pairs:
        figures.append(
            Panel(
                plots.forest(comparison),
                "Difference to the baseline on the same test images. Filled: shown to differ; hollow: not.",
                sheets.pairs(comparison),
            )
        )
    figures.append(
        Panel(
            plots.accuracy(comparison),
            "Mean over seeds. The bar covers the choice of test images; the ticks are the seeds.",
            sheets.seeds(comparison),
        )
    )
    yield Section("results", "Results", table=sheets.results(comparison), figures=figures)
    if comparison.means:
        yield groups_section(comparison)


def groups_section(comparison: Comparison) -> Section:
    """Means over the datasets of each group of the protocol."""
    text = (
        "Each dataset counts once in its group. The interval covers the choice of test images within the "
        "datasets, not the choice of datasets.",
    )
    lines = [Line(cells) for cells in mean_cells(comparison)]
    return Section(
        "groups", "Means over datasets", text, table=Sheet(MEAN_HEADS, lines, (0, 1)), short="Groups"
    )


def _compute(facts: Facts) -> Iterator[Section]:
    caption = (
        "Every training behind a point counts: its fine-tuning, the trainings that chose its learning rate "
        "and, for the pretrained start, the whole pre-training. One pre-training serves all datasets, so its "
        "share shrinks with each dataset that uses it."
    )
    yield compute_section(facts.comparison, caption)


def compute_section(comparison: Comparison, caption: str) -> Section:
    """The Pareto front of the means, then each dataset."""
    panels = []
    front = frontier.frontier(comparison)
    if front is not None:
        said = (
            f"Mean over {len(front.datasets)} datasets. Filled: on the Pareto front; hollow: another is "
            "as good for less compute, or better for as much."
        )
        drawing = frontier.frontier_plot(front)
        panels.append(Panel(drawing, said, frontier.frontier_sheet(front), wide=True))
    panels.append(Panel(plots.compute(comparison), caption, spent_sheets.costs(comparison), wide=True))
    return Section("compute", "Accuracy against compute", figures=panels, short="Compute")


def _curves(facts: Facts) -> Iterator[Section]:
    panels = []
    pretrain = facts.jobs_of("pretrain")
    if pretrain and pretrain[0].curve is not None and pretrain[0].curve.steps:
        drawing = plots.pretraining(pretrain[0].curve)
        panels.append(
            Panel(
                drawing,
                "Pre-training: loss of each logged step.",
                spent_sheets.trainings(pretrain),
                wide=True,
            )
        )
    finetune = facts.jobs_of("finetune")
    curves: dict[str, dict[str, list[Curve]]] = {}
    for job in finetune:
        if job.curve is not None and job.curve.steps:
            dataset, start = str(job.settings["dataset"]), str(job.settings["start"])
            curves.setdefault(dataset, {}).setdefault(start, []).append(job.curve)
    if curves:
        drawing = plots.finetuning(curves, facts.comparison.labels)
        caption = "Fine-tuning: mean over seeds, the band is their range."
        panels.append(Panel(drawing, caption, spent_sheets.trainings(finetune), wide=True))
    if panels:
        yield Section("curves", "Learning curves", figures=panels)


def _choices(facts: Facts) -> Iterator[Section]:
    if facts.choices:
        text = (
            "Each rate was trained on a part of the training set and scored on the rest of it; the best was "
            "then trained on all of it. The test split played no part.",
        )
        yield Section(
            "choices",
            "How the learning rate was chosen",
            text,
            table=sheets.choices(facts),
            short="Learning rates",
        )


def _calibration(facts: Facts) -> Iterator[Section]:
    if facts.reliability:
        drawing = reliability_diagram(facts.reliability, facts.comparison.labels)
        caption = (
            "Test images by the confidence of their prediction, all seeds together: below the dotted line a "
            "model is surer than it is right. The error is the mean gap, weighted by images."
        )
        table = reliability_sheet(facts.reliability)
        panel = Panel(drawing, caption, table, wide=True)
        yield Section("calibration", "Calibration", figures=[panel])


def _insight(facts: Facts) -> Iterator[Section]:
    looked = facts.looked
    if looked is None:
        return
    source = (
        f"{count(looked.images)} images of {clean(facts.config['pretrain']['dataset'])}, {looked.split} split"
    )
    figures = [
        Panel(looked.insight.drawings[name], caption.format(source=source), table(looked.insight), wide=wide)
        for name, (caption, table, wide) in _PICTURES.items()
        if name in looked.insight.drawings and (facts.shows_images or name != "rollout")
    ]
    text = ["The weights as pre-training left them, before any fine-tuning."]
    text += [f"Nothing was looked at: {clean(looked.missing, 400)}."] if looked.missing else []
    # After the semicolon stands what a user of `vitline model inspect` may do.
    reasons = dict.fromkeys(reason.split("; ")[0] for reason in looked.insight.left_out.values())
    text += [f"Left out: {clean(reason, 400)}." for reason in reasons]
    yield Section("insight", "What the pre-trained model looks at", text, figures=figures, short="Insight")


def _run(facts: Facts) -> Iterator[Section]:
    folded = [
        ("Attempts of the pre-training", spent_sheets.attempts(job))
        for job in facts.jobs_of("pretrain")
        if job.curve
    ]
    settings = yaml.safe_dump(dict(facts.config), sort_keys=False, allow_unicode=True)
    listing = ("All settings of the run", settings)
    yield Section("run", "Run", table=spent_sheets.stages(facts), folded=folded, listing=listing)


def _limits(facts: Facts) -> Iterator[Section]:
    yield Section("limits", "What this does not show", points=list(_limit_lines(facts)), short="Limits")


def _limit_lines(facts: Facts) -> Iterator[str]:
    comparison = facts.comparison
    seeds = sorted({len(row.seeds) for row in comparison.rows})
    yield (
        f"Seeds: {' to '.join(map(str, seeds))} for each cell. The intervals of accuracies and differences "
        "cover the choice of test images only; how much another seed moves a number is in the intervals over "
        "seeds." + (" With fewer than 3 seeds that is hardly known." if seeds[0] < 3 else "")
    )
    yield (
        "One pre-training: another seed of it may transfer better or worse, and no number here covers that."
    )
    tests = sum(pair.p is not None for pair in comparison.pairs)
    yield (
        f"Tests: {tests}, two-sided at 5 %, adjusted by Holm over all of them. “No difference shown” is not "
        "“no difference”: the interval says which differences remain possible."
    )
    protocols = sorted({row.protocol for row in comparison.rows})
    yield (
        f"Protocol: {', '.join(map(clean, protocols))} only. Another budget, resolution or grid of learning "
        "rates can change the order; a longer fine-tuning most often narrows the lead of pre-training."
    )
    opened = [f"{clean(card.name)} {card.openings}" for card in facts.data if card.openings]
    if opened:
        yield (
            f"Openings of the test splits so far: {', '.join(opened)}; each model and seed needs one. "
            "Every further choice made after looking at them makes them less of a test."
        )
    unreadable = [f"{clean(card.name)} {card.unreadable}" for card in facts.data if card.unreadable]
    if unreadable:
        yield f"Unreadable images were left out when the data was prepared: {', '.join(unreadable)}."
    splits = {card.name: card.fingerprints.get("test", "") for card in facts.data}
    yield from left_out_lines(facts.left_out, {name: splits.get(name, "") for name in comparison.datasets})

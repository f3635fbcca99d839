"""The sections that show images, classes and time: what was hard, what the data is, what happened when."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.recovery import describe
from pipeline.report import sheets
from pipeline.report.confusion import (
    MOST_CLASSES,
    class_sheets,
    confusion_maps,
    confusion_sheet,
    confusions,
)
from pipeline.report.gather import Facts
from pipeline.report.left_out import left_out_sheet
from pipeline.report.parts import Panel, Section
from pipeline.report.timeline_plot import goodput_sheet, incident_sheet, span_sheet, timeline_plot
from pipeline.report.words import clean


def classes(facts: Facts) -> Iterator[Section]:
    """What is taken for what by the first label, and how classes changed against the baseline."""
    labels = facts.comparison.labels
    found = {label: confusions(facts.cells, label) for label in labels}
    shown = found[labels[0]]
    figures = []
    if any(len(one.classes) <= MOST_CLASSES for one in shown):
        caption = (
            f"Predictions of {clean(labels[0])}, all seeds together: a row is a true class, its shades say "
            "what it was taken for. Right answers lie on the diagonal."
        )
        figures.append(Panel(confusion_maps(shown), caption, confusion_sheet(shown), wide=True))
    folded = [
        (
            f"{clean(pair.dataset)}: {clean(pair.challenger)} against {clean(pair.baseline)}",
            sheets.class_changes(facts, pair.dataset, pair.challenger),
        )
        for pair in facts.comparison.pairs
        if pair.p is not None
    ]
    folded += [(f"{dataset}: every class", sheet) for dataset, sheet in class_sheets(found)]
    text = ("Single classes have few images; read this to find causes, not to draw conclusions.",)
    yield Section("classes", "Classes", text, figures=figures, folded=folded)


def hardest(facts: Facts) -> Iterator[Section]:
    if facts.hardest:
        text = (
            "Test images that most models and seeds got wrong; of equals those with the larger loss. First "
            "the label, then what it was taken for most often: a wrong label shows here too. Whoever changes "
            "a model after looking at these has a test split that is less of a test.",
        )
        yield Section("hardest", "The hardest images", text, galleries=facts.hardest, short="Hardest")


def data(facts: Facts) -> Iterator[Section]:
    if facts.data:
        text = (
            "A fingerprint names the exact images and labels; results of different ones are never compared.",
        )
        yield Section("data", "Data", text, table=sheets.data(facts), galleries=facts.contact)
    if facts.left_out:
        splits = {card.name: card.fingerprints.get("test", "") for card in facts.data}
        tests = {name: splits.get(name, "") for name in facts.comparison.datasets}
        yield Section(
            "duplicates",
            "Near-duplicates of test images",
            ("Images of the pre-training that a test split shows too were left out of it.",),
            table=left_out_sheet(facts.left_out, tests),
            galleries=facts.left_out_pictures,
            short="Duplicates",
        )


def timeline(facts: Facts) -> Iterator[Section]:
    found = facts.timeline
    drawing = timeline_plot(found)
    caption = "A bar is one attempt of one job. Crosses: faults; strokes: restarts, stops and warnings."
    if found.goodput is not None:
        caption += " Below: what the pre-training's time went to, from its first start to its end."
    folded = (
        []
        if found.goodput is None
        else [("What the pre-training's time went to", goodput_sheet(found.goodput))]
    )
    if found.incidents:
        folded.insert(0, (f"Faults, restarts and warnings: {len(found.incidents)}", incident_sheet(found)))
    faults = sum(incident.is_fault for incident in found.incidents)
    restarts = sum(job.attempts - 1 for job in facts.jobs)
    text = (
        "No faults and no restarts." if not faults + restarts else f"Faults: {faults}. Restarts: {restarts}.",
    )
    yield Section(
        "timeline",
        "What happened when",
        text,
        figures=[Panel(drawing, caption, span_sheet(found), wide=True)],
        points=[f"Pre-training, {describe(recovery)}." for recovery in found.recoveries],
        folded=folded,
        short="Timeline",
    )

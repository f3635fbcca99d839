"""Whether cells may be set side by side, and in what they differ when they may not."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config_io import flatten
from pipeline.errors import UserError
from pipeline.transfer.cells import Cell


def check_group(group: Sequence[Cell]) -> None:
    """Cells of one label must differ in their seeds only, or a mean over them means nothing."""
    what = f"{group[0].label} on {group[0].dataset}"
    seeds = [cell.seed for cell in group]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{what} has several results for one seed: {', '.join(f'{c.seed} ({c.digest})' for c in group)}",
            "one result for each seed",
            "name the runs, or the jobs of one command, that are meant",
        )
    if len({(cell.test_fingerprint, cell.ids.tobytes()) for cell in group}) > 1:
        raise UserError(
            f"seeds of {what} were scored on different test images",
            "one test split for all seeds",
            "evaluate them again on one split",
        )


def marks_of(cells: Sequence[Cell], force: bool) -> tuple[str, ...]:
    """Why the cells of one dataset must not be compared; refused unless forced."""
    dataset = cells[0].dataset
    marks = []
    if len({cell.protocol_digest for cell in cells}) > 1:
        marks.append(f"protocols differ on {dataset}: {_protocols(cells)}")
    prints = {cell.label: cell.test_fingerprint[:12] for cell in cells}
    if len(set(prints.values())) > 1:
        named = ", ".join(f"{label} {value}" for label, value in prints.items())
        marks.append(f"test splits differ on {dataset}: {named}")
    elif len({cell.ids.tobytes() for cell in cells}) > 1:
        marks.append(f"different images of the test split of {dataset} were scored")
    if marks and not force:
        raise UserError(
            "; ".join(marks),
            "one protocol and one test split for all that is compared",
            "compare results of one protocol on the same test split, or add --force to see them marked",
        )
    return tuple(marks)


def _protocols(cells: Sequence[Cell]) -> str:
    """Names of the protocols; for two of one name the first settings in which they differ."""
    names = {cell.label: cell.protocol for cell in cells}
    named = ", ".join(f"{label} {name}" for label, name in names.items())
    leaves = [dict(flatten(cell.protocol_settings)) for cell in cells]
    keys = sorted({key for leaf in leaves for key in leaf})
    differing = [key for key in keys if len({str(leaf.get(key)) for leaf in leaves}) > 1]
    shown = "; ".join(
        f"{key.removeprefix('tuned.').removeprefix('protocol.')} "
        + " or ".join(dict.fromkeys(str(leaf.get(key)) for leaf in leaves))
        for key in differing[:3]
    )
    return f"{named} ({shown})" if shown else named

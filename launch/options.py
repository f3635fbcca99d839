"""Options and arguments that several commands share, with one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="configuration file, as configs/demo.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings, as pretrain.batch=256")]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]

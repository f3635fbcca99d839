"""The result of a run, for people: tables, plots and one self-contained page."""

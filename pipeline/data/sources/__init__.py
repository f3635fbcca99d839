"""Where images come from, one file a source; `catalog.py` finds the one that a setting names."""

"""The command line, and what it needs to start a run on one machine or many."""

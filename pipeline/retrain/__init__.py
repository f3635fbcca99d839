"""Runs that repeat by themselves: new data, a run, a gate, a champion. One tick advances as far as it can."""

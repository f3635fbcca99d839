"""Weights in and out: our files, other libraries' layouts, adaptation to another task or size."""

from model.weights.adapt import adapt
from model.weights.files import load_into, load_weights, save_weights

__all__ = ["adapt", "load_into", "load_weights", "save_weights"]

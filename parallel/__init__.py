"""Tessera: plan, run and prove model-parallel inference."""

__version__ = "0.1.0"

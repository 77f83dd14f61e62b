"""Confide: an OpenAI-compatible inference service that proves what it did."""

__version__ = "0.1.0"

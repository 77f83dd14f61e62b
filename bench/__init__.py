"""The budgets, measured: `python -m bench`. docs/performance.md says what is measured, and against what."""

"""Simulated TEE hardware: structurally real evidence under roots of its own, and no protection whatsoever."""

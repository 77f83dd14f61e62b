"""Is this evidence genuine, and what does it prove? Named checks with reasons, offline, without a clock."""

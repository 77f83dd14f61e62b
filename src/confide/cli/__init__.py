"""The command line. One file a command; no logic that the rooms below could hold."""

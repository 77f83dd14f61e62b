"""The other side of the wire: ask a service, and check the proof of what it answered."""

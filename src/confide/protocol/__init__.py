"""The documents of the wire contract, sans-IO: bytes and values in, values out."""

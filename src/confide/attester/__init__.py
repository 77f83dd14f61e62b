"""Who produces evidence, and the only place where private keys live."""

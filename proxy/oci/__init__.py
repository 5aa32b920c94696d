"""The Distribution and Image specifications as pure values: no I/O, no event loop, no HTTP library."""

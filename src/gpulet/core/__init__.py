"""The core: a state machine without clock, I/O or randomness, its vocabulary and its ports."""

"""Training on one rank: the engine, the loop, and the work around each step."""

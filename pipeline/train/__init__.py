"""Training on one rank: the engine, the loop, and what surrounds a step."""

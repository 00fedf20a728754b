"""StepPair -> LoopPlan: what must be sequential, what leaves the loop, what the backward pass keeps. Pure data."""

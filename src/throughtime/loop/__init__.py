"""LoopPlan -> running code."""

"""LoopPlan -> machine code for the CPU, made with LLVM."""

"""What must hold of each stage's output, a module per stage, so that a stage depends on its own invariants only."""

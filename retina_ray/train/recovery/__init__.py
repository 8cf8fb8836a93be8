"""What a run does when something happens to it: faults, preemption, hangs, other workers."""

"""One worker's training: loop, step, optimizer, schedule, validation. Nothing knows of Ray."""

//! The training loop: schedules, checkpoints, metrics.

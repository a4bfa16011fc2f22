//! The integration tests, one binary.

mod scheduler_properties;
mod scheduler_rules;
mod scheduler_simulator;

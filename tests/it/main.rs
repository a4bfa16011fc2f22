//! Integration tests, in one binary.

mod bad_checkpoints;
mod goldens;
mod model_config;
mod mutations;
mod support;

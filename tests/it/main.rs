//! Integration tests: one binary.

#![allow(clippy::print_stdout, reason = "tests say what they measured or could not run")]

mod backend_cpu;
mod bad_checkpoints;
mod cuda;
mod demo_model;
mod engine_bad_models;
mod engine_failures;
mod engine_goldens;
mod engine_limits;
mod engine_params;
mod engine_prefix_cache;
mod engine_requests;
mod engine_support;
mod engine_threads;
mod engine_traffic;
mod fuzz;
mod goldens;
mod header;
mod licences;
mod model_config;
mod mutations;
mod quantization;
mod readme;
mod safetensors_files;
mod scheduler_properties;
mod scheduler_rules;
mod scheduler_simulator;
mod support;
mod symbols;
mod text;
mod tidy;

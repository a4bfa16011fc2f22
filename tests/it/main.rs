//! Integration tests: one binary.

mod engine_failures;
mod engine_goldens;
mod engine_requests;
mod engine_support;
mod engine_traffic;
mod tidy;

//! Integration tests: one binary.

mod engine_support;
mod engine_traffic;
mod tidy;

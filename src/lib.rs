#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod backend;
pub mod chat;
pub mod config;
pub mod engine;
pub mod error;
#[allow(unsafe_code, reason = "the C ABI is a conversation in raw pointers")]
pub mod ffi;
pub mod ids;
pub mod kv_cache;
pub mod metrics;
pub mod model;
mod os;
pub mod request;
pub mod sampling;
pub mod scheduler;
mod sync;
pub mod tokenizer;
pub mod weights;

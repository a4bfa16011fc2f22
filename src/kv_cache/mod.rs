//! The KV cache's bookkeeping: which block holds which tokens. Pure host logic on ids and counts;
//! the memory itself belongs to the backend.
//!
//! ```text
//!   block 0        null block: never handed out, never freed
//!
//!                    allocate (an evicted block leaves the map)
//!        ┌──────────────────────────────────────────────┐
//!        │                                              ▼
//!   free list   head [ unhashed … | hashed, oldest … newest ] tail      used (ref_count >= 1)
//!                      ▲                             ▲                  │        │
//!                      └── release, not in the map ──┼──────────────────┘        │ touch: ref_count++
//!                                                    └── release, in the map ◄───┘ of a hit
//!   free + cached + used == num_blocks - 1
//! ```
//!
//! - Only full blocks are hashed; a hash covers the block's tokens and all tokens before it, so
//!   equal hashes mean equal prefixes. The map never joins two blocks of equal content: a sequence
//!   keeps the blocks that it wrote.
//! - A sequence's blocks are released last first, so that the end of a prefix is evicted before
//!   its beginning.
//! - Every operation on one block is O(1).

mod free_list;
mod hash;
mod pool;

pub use pool::BlockStats;

pub(crate) use hash::{BlockHash, CacheKey, FastMap, hash_block};
pub(crate) use pool::BlockPool;

//! The KV cache's bookkeeping: which block holds which tokens. Pure host logic on ids and counts;
//! the memory itself belongs to the backend.
//!
//! ```text
//!                         free list
//!   head [ not in the map │ in the map, oldest first ] tail        used (ref_count >= 1)
//!     │                             │                                 │
//!     ├── allocate (out of the map: evicted) ───────────────────────► │
//!     │                             ├── touch, by a hit ────────────► │
//!     ◄── release, not in the map ────────────────────────────────────┤
//!                              tail ◄── release, in the map ──────────┘
//!
//!   free (not in the map) + cached (in the map) + used == num_blocks - 1
//!   block 0, the null block, is in neither
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

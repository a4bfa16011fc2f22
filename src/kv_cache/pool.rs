//! `BlockPool`: who holds which block, and which full blocks can be found again.

use std::collections::HashSet;

use super::free_list::FreeList;
use super::hash::{BlockHash, CacheKey, FastMap};
use crate::error::{Error, Result};
use crate::ids::BlockId;

/// Blocks of the pool, without the null block: `total == free + cached + used`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// All.
    pub total: usize,
    /// Held by no sequence and of no use to one.
    pub free: usize,
    /// Held by no sequence, but found by prompts that begin alike until they are evicted.
    pub cached: usize,
    /// Held by at least one sequence.
    pub used: usize,
}

/// The physical blocks of all groups.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: FreeList,
    /// The oldest block of each content; others of the same content hang on it.
    cached: FastMap<CacheKey, BlockId>,
    /// Blocks of the free list that are in the map.
    num_cached_free: usize,
    /// Blocks whose content became garbage since `take_freed` was last called, each once.
    freed: Vec<BlockId>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    ref_count: u32,
    /// Whether it is in `BlockPool::freed`.
    reported: bool,
    cached: Option<Cached>,
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    key: CacheKey,
    parent: Option<BlockHash>,
    /// Neighbours in the list of blocks of equal content.
    prev_equal: Option<BlockId>,
    next_equal: Option<BlockId>,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, of which block 0 is the null block. They are handed out in
    /// order, or shuffled by a seed. Fails if there is no block beside the null block, if ids do
    /// not suffice, or if memory does not.
    pub(crate) fn new(num_blocks: usize, shuffle: Option<u64>) -> Result<Self> {
        if num_blocks < 2 || num_blocks >= u32::MAX as usize {
            let message = format!("num_blocks must be in [2, {}), got {num_blocks}.", u32::MAX);
            return Err(Error::invalid("num_blocks", message).with("value", num_blocks));
        }
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(num_blocks)?;
        blocks.resize(num_blocks, Block::default());
        let mut cached = FastMap::default();
        cached.try_reserve(num_blocks)?;
        let mut freed = Vec::new();
        freed.try_reserve_exact(num_blocks)?;
        let mut order = Vec::new();
        order.try_reserve_exact(num_blocks - 1)?;
        order.extend((1..num_blocks as u32).map(BlockId));
        if let Some(seed) = shuffle {
            shuffle_by(seed, &mut order);
        }
        let mut free = FreeList::new(num_blocks)?;
        order.into_iter().for_each(|block| free.push_back(block));
        blocks[0].ref_count = 1; // The null block is never free.
        Ok(Self { blocks, free, cached, num_cached_free: 0, freed })
    }

    /// Blocks that sequences can hold: all but the null block.
    pub(crate) fn num_usable(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that `allocate` can hand out, cached ones included.
    pub(crate) fn num_available(&self) -> usize {
        self.free.len()
    }

    /// Counts.
    pub(crate) fn stats(&self) -> BlockStats {
        BlockStats {
            total: self.num_usable(),
            free: self.free.len() - self.num_cached_free,
            cached: self.num_cached_free,
            used: self.num_usable() - self.free.len(),
        }
    }

    /// A block of this content.
    pub(crate) fn lookup(&self, key: &CacheKey) -> Option<BlockId> {
        self.cached.get(key).copied()
    }

    /// Whether no sequence holds `block`.
    pub(crate) fn is_available(&self, block: BlockId) -> bool {
        self.blocks[block.index()].ref_count == 0
    }

    /// One more sequence holds `block`, which `lookup` found.
    pub(crate) fn touch(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.index()];
        if entry.ref_count == 0 {
            assert!(entry.cached.is_some(), "touch of free block {block}");
            self.num_cached_free -= 1;
            self.free.remove(block);
        }
        entry.ref_count += 1;
    }

    /// Hands out the block that is first in the free list; a cached one is evicted.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.front()?;
        if self.blocks[block.index()].cached.is_some() {
            self.unlink(block);
            self.num_cached_free -= 1;
            self.report(block);
        }
        self.free.remove(block);
        self.blocks[block.index()].ref_count = 1;
        Some(block)
    }

    /// A sequence lets go of `table`, its blocks in order of position. They are released last
    /// first, so that the end of a prefix is evicted before its beginning.
    pub(crate) fn release(&mut self, table: &[BlockId]) {
        for &block in table.iter().rev() {
            let entry = &mut self.blocks[block.index()];
            assert!(entry.ref_count > 0, "release of free block {block}");
            entry.ref_count -= 1;
            if entry.ref_count > 0 {
                continue;
            }
            if entry.cached.is_some() {
                self.num_cached_free += 1;
                self.free.push_back(block);
            } else {
                self.free.push_front(block);
                self.report(block);
            }
        }
    }

    /// Makes `block`, which is full and held, findable as `key`; `parent` is the hash before it.
    pub(crate) fn cache(&mut self, block: BlockId, key: CacheKey, parent: Option<BlockHash>) {
        assert!(self.blocks[block.index()].ref_count > 0, "cache of free block {block}");
        assert!(self.blocks[block.index()].cached.is_none(), "block {block} is cached");
        let mut entry = Cached { key, parent, prev_equal: None, next_equal: None };
        match self.cached.get(&key).copied() {
            None => {
                self.cached.insert(key, block);
            }
            Some(first) => {
                entry.prev_equal = Some(first);
                entry.next_equal = self.links(first).next_equal.replace(block);
                if let Some(next) = entry.next_equal {
                    self.links(next).prev_equal = Some(block);
                }
            }
        }
        self.blocks[block.index()].cached = Some(entry);
    }

    /// Takes `block` out of the map if it is there as `key`; says whether it was. A block that
    /// nobody holds is then free.
    pub(crate) fn uncache(&mut self, block: BlockId, key: &CacheKey) -> bool {
        if self.key(block) != Some(*key) {
            return false;
        }
        self.unlink(block);
        if self.is_available(block) {
            self.num_cached_free -= 1;
            self.free.remove(block);
            self.free.push_front(block);
            self.report(block);
        }
        true
    }

    /// Takes the blocks of these contents out of the map, and every block that was computed from
    /// one of them. Returns all that were taken out. Linear in the pool; for faults only.
    pub(crate) fn uncache_with_descendants(&mut self, contents: &[BlockHash]) -> Vec<BlockId> {
        let mut bad: HashSet<BlockHash> = contents.iter().copied().collect();
        let mut removed = Vec::new();
        let mut before = None;
        while before.replace(removed.len()) != Some(removed.len()) {
            for i in 1..self.blocks.len() {
                let block = BlockId(i as u32);
                let Some(Cached { key, parent, .. }) = self.blocks[i].cached else { continue };
                if bad.contains(&key.hash) || parent.is_some_and(|p| bad.contains(&p)) {
                    bad.insert(key.hash);
                    self.uncache(block, &key);
                    removed.push(block);
                }
            }
        }
        removed
    }

    /// Empties the map, unless a sequence holds a block.
    pub(crate) fn reset_prefix_cache(&mut self) -> bool {
        if self.free.len() != self.num_usable() {
            return false;
        }
        for i in 1..self.blocks.len() {
            if let Some(cached) = self.blocks[i].cached {
                self.uncache(BlockId(i as u32), &cached.key);
            }
        }
        true
    }

    /// Blocks whose content became garbage since the last call, each once.
    pub(crate) fn take_freed(&mut self) -> Vec<BlockId> {
        for block in &self.freed {
            self.blocks[block.index()].reported = false;
        }
        std::mem::take(&mut self.freed)
    }

    /// Checks the invariants against `ref_counts`, the holders of each block as the caller counts
    /// them.
    pub(crate) fn check_integrity(&self, ref_counts: &[u32]) -> std::result::Result<(), String> {
        let mut in_list = vec![false; self.blocks.len()];
        let mut cached_free = 0;
        for block in self.free.iter() {
            if block.index() == 0 || std::mem::replace(&mut in_list[block.index()], true) {
                return Err(format!("block {block} must not be in the free list (again)"));
            }
            cached_free += usize::from(self.blocks[block.index()].cached.is_some());
        }
        if in_list.iter().filter(|&&x| x).count() != self.free.len() {
            return Err("the free list's length is wrong".to_owned());
        }
        if cached_free != self.num_cached_free {
            return Err(format!("{cached_free} cached free blocks, not {}", self.num_cached_free));
        }
        let mut num_cached = 0;
        for (i, block) in self.blocks.iter().enumerate().skip(1) {
            let (held, expected) = (block.ref_count, ref_counts[i]);
            if held != expected {
                return Err(format!("block {i} has ref_count {held}, but {expected} holders"));
            }
            if in_list[i] != (held == 0) {
                return Err(format!(
                    "block {i} has ref_count {held}, in free list: {}",
                    in_list[i]
                ));
            }
            num_cached += usize::from(block.cached.is_some());
        }
        let mut reachable = 0;
        for (key, &first) in &self.cached {
            let mut at = Some(first);
            while let Some(block) = at {
                if self.key(block) != Some(*key) {
                    return Err(format!("the map finds block {block} by a key that it lacks"));
                }
                reachable += 1;
                at = self.blocks[block.index()].cached.and_then(|cached| cached.next_equal);
            }
        }
        if reachable != num_cached {
            return Err(format!("the map reaches {reachable} of {num_cached} cached blocks"));
        }
        Ok(())
    }

    fn key(&self, block: BlockId) -> Option<CacheKey> {
        self.blocks[block.index()].cached.map(|cached| cached.key)
    }

    /// Takes `block` out of the map and of the list of its equals.
    fn unlink(&mut self, block: BlockId) {
        let Some(entry) = self.blocks[block.index()].cached.take() else { return };
        if let Some(next) = entry.next_equal {
            self.links(next).prev_equal = entry.prev_equal;
        }
        match (entry.prev_equal, entry.next_equal) {
            (Some(prev), next) => self.links(prev).next_equal = next,
            (None, Some(next)) => {
                self.cached.insert(entry.key, next);
            }
            (None, None) => {
                self.cached.remove(&entry.key);
            }
        }
    }

    fn links(&mut self, block: BlockId) -> &mut Cached {
        // Only blocks in the map are linked to one another.
        self.blocks[block.index()].cached.as_mut().expect("a linked block is cached")
    }

    fn report(&mut self, block: BlockId) {
        if !std::mem::replace(&mut self.blocks[block.index()].reported, true) {
            self.freed.push(block);
        }
    }
}

/// Fisher-Yates with splitmix64.
fn shuffle_by(seed: u64, order: &mut [BlockId]) {
    let mut state = seed;
    for i in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;

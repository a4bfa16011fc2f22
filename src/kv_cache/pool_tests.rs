use super::*;
use crate::ids::TokenId;
use crate::kv_cache::hash_block;

fn key(i: u32) -> CacheKey {
    CacheKey { hash: hash_block(None, &[TokenId(i)], None), group: 0 }
}

fn take(pool: &mut BlockPool, n: usize) -> Vec<BlockId> {
    (0..n).map(|_| pool.allocate().unwrap()).collect()
}

#[test]
fn unhashed_blocks_are_reused_first_and_hashed_ones_last_and_tail_first() {
    let mut pool = BlockPool::new(8, None).unwrap();
    let table = take(&mut pool, 4);
    assert_eq!(table, [1, 2, 3, 4].map(BlockId));
    pool.cache(table[0], key(0), None);
    pool.cache(table[1], key(1), Some(key(0).hash));
    pool.release(&table);
    assert_eq!(pool.stats(), BlockStats { total: 7, free: 5, cached: 2, used: 0 });
    assert_eq!(take(&mut pool, 7), [3, 4, 5, 6, 7, 2, 1].map(BlockId));
    assert_eq!(pool.allocate(), None);
    assert_eq!(pool.lookup(&key(0)), None, "evicted when handed out");
}

#[test]
fn a_hit_leaves_the_free_list_and_counts_holders() {
    let mut pool = BlockPool::new(4, None).unwrap();
    let table = take(&mut pool, 1);
    pool.cache(table[0], key(0), None);
    pool.touch(table[0]);
    pool.release(&table);
    assert!(!pool.is_available(table[0]));
    pool.release(&table);
    assert!(pool.is_available(table[0]));
    pool.touch(pool.lookup(&key(0)).unwrap());
    assert_eq!(take(&mut pool, 2), [2, 3].map(BlockId));
    assert_eq!(pool.allocate(), None);
    pool.check_integrity(&[1, 1, 1, 1]).unwrap();
    assert!(pool.check_integrity(&[1, 2, 1, 1]).is_err());
}

#[test]
fn equal_blocks_keep_their_own_ids() {
    let mut pool = BlockPool::new(5, None).unwrap();
    let blocks = take(&mut pool, 4);
    for &block in &blocks[..3] {
        pool.cache(block, key(0), None);
    }
    pool.check_integrity(&[1; 5]).unwrap();
    assert_eq!(pool.lookup(&key(0)), Some(blocks[0]));
    assert!(pool.uncache(blocks[0], &key(0)));
    assert!(!pool.uncache(blocks[0], &key(0)), "only once");
    assert!(!pool.uncache(blocks[1], &key(1)), "not by another key");
    let next = pool.lookup(&key(0)).unwrap();
    assert!(next == blocks[1] || next == blocks[2]);
    assert!(pool.uncache(next, &key(0)));
    pool.check_integrity(&[1; 5]).unwrap();
    assert!(pool.lookup(&key(0)).is_some());
}

#[test]
fn groups_are_apart() {
    let mut pool = BlockPool::new(4, None).unwrap();
    let block = pool.allocate().unwrap();
    pool.cache(block, key(0), None);
    assert_eq!(pool.lookup(&CacheKey { group: 1, ..key(0) }), None);
}

#[test]
fn freed_blocks_are_reported_once_when_their_content_is_garbage() {
    let mut pool = BlockPool::new(4, None).unwrap();
    let table = take(&mut pool, 2);
    pool.cache(table[0], key(0), None);
    pool.release(&table);
    assert_eq!(pool.take_freed(), [BlockId(2)], "the cached block still has its content");
    assert_eq!(take(&mut pool, 3), [2, 3, 1].map(BlockId));
    assert_eq!(pool.take_freed(), [BlockId(1)], "evicted");
    for _ in 0..3 {
        pool.release(&[BlockId(3)]);
        pool.allocate().unwrap();
    }
    assert_eq!(pool.take_freed(), [BlockId(3)]);
}

#[test]
fn a_poisoned_block_takes_its_descendants_along() {
    let mut pool = BlockPool::new(8, None).unwrap();
    let blocks = take(&mut pool, 5);
    // 3 <- 1 <- 0, 2 <- 0, and 4 on its own: blocks that come before their parents in the pool too.
    let parents = [Some(3), Some(0), Some(3), None, None];
    for (i, parent) in parents.into_iter().enumerate() {
        pool.cache(blocks[i], key(i as u32), parent.map(|p| key(p).hash));
    }
    pool.release(&blocks[..2]);
    assert_eq!(pool.uncache_with_descendants(&[key(3).hash]).len(), 4);
    let left: Vec<_> = (0..5).filter(|&i| pool.lookup(&key(i)).is_some()).collect();
    assert_eq!(left, [4]);
    pool.check_integrity(&[1, 0, 0, 1, 1, 1, 0, 0]).unwrap();
}

#[test]
fn reset_needs_an_idle_pool() {
    let mut pool = BlockPool::new(4, None).unwrap();
    let table = take(&mut pool, 2);
    pool.cache(table[0], key(0), None);
    assert!(!pool.reset_prefix_cache());
    pool.release(&table);
    assert!(pool.reset_prefix_cache());
    assert_eq!(pool.stats(), BlockStats { total: 3, free: 3, cached: 0, used: 0 });
    assert_eq!(pool.lookup(&key(0)), None);
}

#[test]
fn shuffled_order_is_a_permutation_by_seed() {
    let order = |seed| {
        let mut pool = BlockPool::new(50, seed).unwrap();
        take(&mut pool, 49)
    };
    assert_eq!(order(Some(3)), order(Some(3)));
    assert_ne!(order(Some(3)), order(Some(4)));
    let mut sorted = order(Some(3));
    sorted.sort();
    assert_eq!(sorted, order(None));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for num_blocks in [0, 1, u32::MAX as usize] {
        let error = BlockPool::new(num_blocks, None).unwrap_err();
        assert!(error.message().contains(&num_blocks.to_string()), "{error}");
    }
}

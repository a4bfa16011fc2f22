//! `FreeList`: a doubly linked list of blocks in two index arrays, O(1) at both ends and in the
//! middle.

use crate::error::Result;
use crate::ids::BlockId;

/// The free blocks, next to be handed out first.
#[derive(Debug)]
pub(super) struct FreeList {
    /// By block: its neighbours. The last entry is the sentinel that closes the ring.
    links: Vec<Link>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

impl FreeList {
    /// An empty list over blocks `0..num_blocks`.
    pub(super) fn new(num_blocks: usize) -> Result<Self> {
        let mut links = Vec::new();
        links.try_reserve_exact(num_blocks + 1)?;
        // A block that is not in the list points at itself, and so does the empty ring's sentinel.
        links.extend((0..=num_blocks as u32).map(|i| Link { prev: i, next: i }));
        Ok(Self { links, len: 0 })
    }

    /// Blocks in the list.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether `block` is in the list.
    pub(super) fn contains(&self, block: BlockId) -> bool {
        self.links[block.index()].next != block.0
    }

    /// The block at the head.
    pub(super) fn front(&self) -> Option<BlockId> {
        let head = self.links[self.sentinel() as usize].next;
        (head != self.sentinel()).then_some(BlockId(head))
    }

    /// Puts `block` at the head: it is reused first.
    pub(super) fn push_front(&mut self, block: BlockId) {
        let sentinel = self.sentinel();
        let head = self.links[sentinel as usize].next;
        self.insert(block.0, sentinel, head);
    }

    /// Puts `block` at the tail: it is reused last.
    pub(super) fn push_back(&mut self, block: BlockId) {
        let sentinel = self.sentinel();
        let tail = self.links[sentinel as usize].prev;
        self.insert(block.0, tail, sentinel);
    }

    /// Takes `block` out from wherever it is.
    pub(super) fn remove(&mut self, block: BlockId) {
        assert!(self.contains(block), "block {block} is not in the free list");
        let Link { prev, next } = self.links[block.index()];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block.index()] = Link { prev: block.0, next: block.0 };
        self.len -= 1;
    }

    /// The blocks, head first.
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let sentinel = self.sentinel();
        let mut at = self.links[sentinel as usize].next;
        std::iter::from_fn(move || {
            let block = (at != sentinel).then_some(BlockId(at))?;
            at = self.links[at as usize].next;
            Some(block)
        })
    }

    fn insert(&mut self, block: u32, prev: u32, next: u32) {
        assert!(!self.contains(BlockId(block)), "block {block} is in the free list already");
        self.links[block as usize] = Link { prev, next };
        self.links[prev as usize].next = block;
        self.links[next as usize].prev = block;
        self.len += 1;
    }

    fn sentinel(&self) -> u32 {
        (self.links.len() - 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(list: &FreeList) -> Vec<u32> {
        list.iter().map(|b| b.0).collect()
    }

    #[test]
    fn keeps_order_at_both_ends_and_in_the_middle() {
        let mut list = FreeList::new(6).unwrap();
        assert_eq!(list.front(), None);
        for i in 1..5 {
            list.push_back(BlockId(i));
        }
        list.push_front(BlockId(5));
        assert_eq!(order(&list), [5, 1, 2, 3, 4]);
        list.remove(BlockId(2));
        list.remove(BlockId(5));
        list.remove(BlockId(4));
        assert_eq!(order(&list), [1, 3]);
        assert!(list.contains(BlockId(3)) && !list.contains(BlockId(4)));
        list.push_back(BlockId(4));
        assert_eq!((order(&list), list.len()), (vec![1, 3, 4], 3));
        for i in [1, 3, 4] {
            assert_eq!(list.front(), Some(BlockId(i)));
            list.remove(BlockId(i));
        }
        assert_eq!((list.front(), list.len()), (None, 0));
    }
}

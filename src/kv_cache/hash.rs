//! Hashes of blocks: SHA-256 over the parent block's hash, the tokens and the extra keys.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use sha2::{Digest, Sha256};

use crate::ids::TokenId;

/// Hash of a full block and of everything before it: all 256 bits, so that nobody can make two
/// prefixes collide and read another's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHash([u64; 4]);

/// What the cache's map is keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey {
    /// The content.
    pub(crate) hash: BlockHash,
    /// The KV group: groups hold different layers' data for the same tokens.
    pub(crate) group: u32,
}

impl Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Any 64 of the digest's bits are as good as all for finding the bucket.
        state.write_u64(self.0[0]);
    }
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash.0[0] ^ u64::from(self.group));
    }
}

/// Hash of the block that holds `tokens`. `parent` is the hash of the block before it, absent for
/// a sequence's first block, and only there `salt` takes part: the chain carries it on.
pub(crate) fn hash_block(
    parent: Option<&BlockHash>,
    tokens: &[TokenId],
    salt: Option<&str>,
) -> BlockHash {
    let mut sha = Sha256::new();
    match parent {
        Some(parent) => {
            sha.update([1]);
            parent.0.iter().for_each(|word| sha.update(word.to_le_bytes()));
        }
        None => {
            sha.update([0]);
            sha.update(SEED);
        }
    }
    sha.update((tokens.len() as u64).to_le_bytes());
    let mut bytes = [0; 4 * TOKENS_PER_UPDATE];
    for part in tokens.chunks(TOKENS_PER_UPDATE) {
        for (out, token) in bytes.chunks_exact_mut(4).zip(part) {
            out.copy_from_slice(&token.0.to_le_bytes());
        }
        sha.update(&bytes[..4 * part.len()]);
    }
    if let (None, Some(salt)) = (parent, salt) {
        sha.update((salt.len() as u64).to_le_bytes());
        sha.update(salt.as_bytes());
    }
    let digest = sha.finalize();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |acc, &byte| acc << 8 | u64::from(byte));
    }
    BlockHash(words)
}

/// A map whose keys are ids or already hashes: one multiplication instead of SipHash.
pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// Hashes one `u64` (ids and digests write nothing else).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, value: u64) {
        // Fibonacci hashing; the rotation brings the mixed high bits down to the bucket index.
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// Stands in for the parent of a first block.
const SEED: &[u8] = b"vrust block hash, version 1";
const TOKENS_PER_UPDATE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().map(|&id| TokenId(id)).collect()
    }

    #[test]
    fn depends_on_parent_tokens_and_salt() {
        let a = tokens(&[1, 2, 3, 4]);
        let b = tokens(&[1, 2, 3, 5]);
        let root = hash_block(None, &a, None);
        assert_eq!(root, hash_block(None, &a, None));
        let others = [
            hash_block(None, &b, None),
            hash_block(Some(&root), &a, None),
            hash_block(None, &a, Some("tenant")),
            hash_block(None, &a, Some("")),
            hash_block(None, &a[..3], None),
        ];
        for (i, x) in others.iter().enumerate() {
            assert_ne!(*x, root, "case {i}");
            assert!(others[..i].iter().all(|y| x != y), "case {i}");
        }
    }

    #[test]
    fn salt_counts_in_the_first_block_only() {
        let a = tokens(&[7; 16]);
        let root = hash_block(None, &a, Some("x"));
        assert_eq!(hash_block(Some(&root), &a, Some("x")), hash_block(Some(&root), &a, None));
    }

    #[test]
    fn long_blocks_are_hashed_whole() {
        let mut a = tokens(&[7; 200]);
        let before = hash_block(None, &a, None);
        a[199] = TokenId(8);
        assert_ne!(before, hash_block(None, &a, None));
    }
}

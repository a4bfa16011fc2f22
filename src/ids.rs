//! Ids as types of their own, so that an id is never mistaken for a count.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            /// The id as an index into a table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A token of the model's vocabulary.
    TokenId(u32)
}
id! {
    /// A physical block of the KV cache. Block 0 is the null block and never holds data.
    BlockId(u32)
}
id! {
    /// A sequence: one choice of one request while it runs. Never reused within an engine.
    SeqId(u64)
}
id! {
    /// A request, as the host knows it. Never 0, never reused within an engine.
    RequestId(u64)
}

/// A copy of one block before the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Where from.
    pub source: BlockId,
    /// Where to.
    pub destination: BlockId,
}

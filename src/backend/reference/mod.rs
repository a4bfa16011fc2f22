//! Plain loops in f32: the oracle.

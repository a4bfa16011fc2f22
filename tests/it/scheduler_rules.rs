//! The scheduler's rules, one scenario each.

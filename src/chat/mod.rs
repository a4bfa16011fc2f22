//! The `chat` room.

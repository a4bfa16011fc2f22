//! Units of the `tokenizer` room; tests/it/text.rs has the goldens.

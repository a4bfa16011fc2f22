//! From the host's pointers to checked values.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::time::Duration;

use super::version::VRUST_ABI_VERSION;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::TokenId;

/// Largest `struct_size` that can be meant: an uninitialised one should not send us reading.
const MAX_STRUCT_SIZE: usize = 4096;

/// An output of a call: checked first, written last.
#[derive(Debug)]
pub(super) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is NULL, or writable until the call returns.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self> {
        let message = || Error::invalid(name, format!("{name}: must not be NULL"));
        NonNull::new(pointer).map(Self).ok_or_else(message)
    }

    pub(super) fn write(self, value: T) {
        // SAFETY: `new`'s caller promised a writable place; the host's struct may be unaligned.
        unsafe { self.0.as_ptr().write_unaligned(value) };
    }
}

/// `len` bytes of UTF-8.
///
/// # Safety
/// `data` is NULL, or `len` bytes are readable until the call returns.
pub(super) unsafe fn text<'a>(data: *const c_char, len: usize, name: &str) -> Result<&'a str> {
    // SAFETY: as this function's contract.
    let bytes = unsafe { slice(data.cast::<u8>(), len, name)? };
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        Error::invalid(name, format!("{name}: not UTF-8 at byte {at}")).with("offset", at)
    })
}

/// The same, where absence (NULL or no bytes) has a meaning.
///
/// # Safety
/// As `text`.
pub(super) unsafe fn optional_text<'a>(
    data: *const c_char,
    len: usize,
    name: &str,
) -> Result<Option<&'a str>> {
    // SAFETY: as this function's contract.
    let text = unsafe { text(data, len, name)? };
    Ok(Some(text).filter(|t| !t.is_empty()))
}

/// `len` items.
///
/// # Safety
/// `data` is NULL, or `len` items are readable until the call returns.
pub(super) unsafe fn slice<'a, T: Copy>(data: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Error::invalid(name, format!("{name}: NULL with a length of {len}")));
    }
    if len > isize::MAX as usize / size_of::<T>().max(1) || !data.is_aligned() {
        let message = format!("{name}: a length of {len} or an unaligned pointer");
        return Err(Error::invalid(name, message));
    }
    // SAFETY: not NULL, aligned, of a possible size, and readable by this function's contract.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// A copy that fails softly when there is no memory for it.
pub(super) fn owned(text: &str) -> Result<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len())?;
    copy.push_str(text);
    Ok(copy)
}

/// The same of token ids.
pub(super) fn token_ids(ids: &[u32]) -> Result<Vec<TokenId>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(ids.len())?;
    copy.extend(ids.iter().map(|&id| TokenId(id)));
    Ok(copy)
}

/// Copies `values` to the host's buffer of `capacity`, after saying how many there are.
///
/// # Safety
/// `buffer` is NULL, or `capacity` items are writable until the call returns.
pub(super) unsafe fn fill<T: Copy>(
    values: &[T],
    buffer: *mut T,
    capacity: usize,
    count: Out<usize>,
    name: &str,
) -> Result<()> {
    if buffer.is_null() && capacity > 0 {
        return Err(Error::invalid(name, format!("{name}: NULL with a room of {capacity}")));
    }
    let needed = values.len();
    count.write(needed);
    if needed > capacity {
        let message = format!("{name}: needs room for {needed}, has {capacity}");
        let error = Error::new(ErrorKind::BufferTooSmall, message).with("field", name);
        return Err(error.with("needed", needed).with("value", capacity));
    }
    if needed > 0 {
        // SAFETY: not NULL, as `capacity` is not 0; `capacity >= needed` items are writable by
        // this function's contract, and the library's own values cannot overlap the host's
        // buffer. Bytes, as it may be unaligned.
        unsafe {
            let (from, to) = (values.as_ptr().cast::<u8>(), buffer.cast::<u8>());
            to.copy_from_nonoverlapping(from, size_of_val(values));
        }
    }
    Ok(())
}

/// Milliseconds; -1 means no limit.
pub(super) fn timeout(timeout_ms: i32) -> Result<Option<Duration>> {
    match timeout_ms {
        -1 => Ok(None),
        0.. => Ok(Some(Duration::from_millis(timeout_ms.unsigned_abs().into()))),
        _ => {
            let message =
                format!("timeout_ms: must be -1 (no limit) or at least 0, got {timeout_ms}");
            Err(Error::invalid("timeout_ms", message).with("limit", -1).with("value", timeout_ms))
        }
    }
}

/// A C truth value of an options struct.
pub(super) fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => {
            let message = format!("{name}: must be 0 or 1, got {value}");
            Err(Error::invalid(name, message).with("value", value))
        }
    }
}

/// A struct that begins with `uint32_t struct_size, abi_version` and only ever grows.
///
/// # Safety
/// The type is `repr(C)`, has no padding, begins with those two fields, and every bit pattern of
/// it is valid.
pub(super) unsafe trait Versioned: Copy {
    /// Name in the header.
    const NAME: &'static str;
    /// `struct_size` of the first version.
    const MIN_SIZE: usize;
    /// Every field at its default.
    fn defaults() -> Self;
}

/// Reads as much as the host's header knew of; the rest stays at its default.
///
/// # Safety
/// `pointer` is NULL, or readable for as many bytes as the `struct_size` it holds.
pub(super) unsafe fn read<T: Versioned>(pointer: *const T, argument: &str) -> Result<T> {
    if pointer.is_null() {
        return Err(Error::invalid(argument, format!("{argument}: must not be NULL")));
    }
    let bytes = pointer.cast::<u8>();
    // SAFETY: every version of the struct begins with these eight bytes.
    let [struct_size, abi_version] = unsafe { bytes.cast::<[u32; 2]>().read_unaligned() };
    check_version(T::NAME, abi_version)?;
    let (given, known) = (struct_size as usize, size_of::<T>());
    if !(T::MIN_SIZE..=MAX_STRUCT_SIZE).contains(&given) {
        let message = format!(
            "{}.struct_size: must be {} to {MAX_STRUCT_SIZE}, got {given}; call its init function",
            T::NAME,
            T::MIN_SIZE
        );
        return Err(mismatch(message).with("limit", T::MIN_SIZE).with("value", given));
    }
    let mut value = T::defaults();
    // SAFETY: `given` bytes are readable, `known` writable; the trait allows any bit pattern.
    unsafe {
        let to = (&raw mut value).cast::<u8>();
        to.copy_from_nonoverlapping(bytes, given.min(known));
    }
    for offset in known..given {
        // SAFETY: within the `struct_size` bytes that are readable.
        if unsafe { bytes.add(offset).read() } != 0 {
            let message = format!(
                "{}: byte {offset} is set, but this library knows only {known} bytes",
                T::NAME
            );
            return Err(mismatch(message).with("limit", known).with("value", given));
        }
    }
    Ok(value)
}

/// Writes the defaults of as much as the host's header knows of, and zeros past what we know.
///
/// # Safety
/// `pointer` is NULL, or `size` bytes are writable.
pub(super) unsafe fn init<T: Versioned>(pointer: *mut T, size: usize) {
    if pointer.is_null() || size > MAX_STRUCT_SIZE {
        return;
    }
    let defaults = T::defaults();
    // SAFETY: `size` bytes are writable; `defaults` has no padding, so its bytes are initialised.
    unsafe {
        let to = pointer.cast::<u8>();
        to.write_bytes(0, size);
        to.copy_from_nonoverlapping((&raw const defaults).cast(), size.min(size_of::<T>()));
        if size >= 4 {
            to.cast::<u32>().write_unaligned(size as u32);
        }
    }
}

/// A struct of zeros.
///
/// # Safety
/// As `Versioned`: every bit pattern is valid.
pub(super) const unsafe fn zeroed<T>() -> T {
    // SAFETY: as this function's contract.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn check_version(name: &str, version: u32) -> Result<()> {
    let ours = VRUST_ABI_VERSION;
    if version >> 16 == ours >> 16 && version & 0xffff <= ours & 0xffff {
        return Ok(());
    }
    let message = format!(
        "{name}.abi_version: this library serves {}.0 to {0}.{}, got {}.{}; \
         call its init function, or use a matching library",
        ours >> 16,
        ours & 0xffff,
        version >> 16,
        version & 0xffff
    );
    Err(mismatch(message).with("limit", ours).with("value", version))
}

fn mismatch(message: String) -> Error {
    Error::new(ErrorKind::AbiMismatch, message)
}

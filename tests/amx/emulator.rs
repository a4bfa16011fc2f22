//! AMX by software, for tests on machines that lack it: a handler of SIGILL that carries out the
//! very machine code of the AMX kernels. Never part of the library.
//!
//! What it relies on is the pseudo-code in Intel's manual. `tdpbf16ps`: of each tile the products
//! of even elements and those of odd elements are two chains of fused multiply-adds, from zero;
//! their sum is added to the destination. Nearest even; denormals count as zero and become zero;
//! MXCSR is neither asked nor changed. `tdpbssd` and its kin: exact sums in i32 that wrap around.
//! Not modelled: which NaN comes out of several.
#![allow(unsafe_code, reason = "handles a signal and reads machine code")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Carries out AMX instructions of every thread from now on. Needs AVX-512.
pub(crate) fn install() {
    assert!(is_x86_feature_detected!("avx512f"), "the emulator multiplies by AVX-512");
    FORMER.get_or_init(|| {
        let mut former = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a sigaction; the handler has the signature that SA_SIGINFO wants.
        unsafe {
            let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            ours.sa_sigaction = on_illegal_instruction as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            let done = libc::sigaction(libc::SIGILL, &ours, former.as_mut_ptr());
            assert_eq!(done, 0, "sigaction");
            Former(former.assume_init())
        }
    });
}

/// Products of tiles so far, of all threads.
pub(crate) fn products() -> u64 {
    PRODUCTS.load(Ordering::Relaxed)
}

struct Former(libc::sigaction);

// SAFETY: an address and masks, which nobody changes.
unsafe impl Send for Former {}
// SAFETY: as above.
unsafe impl Sync for Former {}

static FORMER: OnceLock<Former> = OnceLock::new();
static PRODUCTS: AtomicU64 = AtomicU64::new(0);

/// One thread's tiles. Rows and columns past a tile's shape hold zeros.
#[repr(C, align(64))]
struct Tiles {
    configured: bool,
    rows: [u8; 8],
    /// Bytes of a row.
    colsb: [u16; 8],
    data: [[[u8; 64]; 16]; 8],
}

const RELEASED: Tiles =
    Tiles { configured: false, rows: [0; 8], colsb: [0; 8], data: [[[0; 64]; 16]; 8] };

thread_local! {
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(RELEASED) };
}

extern "C" fn on_illegal_instruction(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands a ucontext to a handler that asked for one.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as u64;
    let done = Instruction::decode(at, registers).and_then(|instruction| {
        // SAFETY: the thread's own tiles; nothing borrows them while its code is interrupted.
        TILES.with(|tiles| unsafe { (*tiles.get()).execute(&instruction) })?;
        Some(instruction.len)
    });
    match done {
        Some(len) => registers[libc::REG_RIP as usize] += len as i64,
        None => pass_on(signal, info, context),
    }
}

/// Hands a signal that is not AMX's to whoever had it before.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(Former(former)) = FORMER.get() else { std::process::abort() };
    // SAFETY: the handler was installed with these flags, thus has the signature called here.
    unsafe {
        match former.sa_sigaction {
            // The instruction is met again, and ends the process.
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, former, std::ptr::null_mut());
            }
            address if former.sa_flags & libc::SA_SIGINFO != 0 => {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                std::mem::transmute::<usize, Handler>(address)(signal, info, context);
            }
            address => {
                type Handler = extern "C" fn(libc::c_int);
                std::mem::transmute::<usize, Handler>(address)(signal);
            }
        }
    }
}

/// A VEX-encoded instruction of opcode map 0F38, 128 bits, W0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    opcode: u8,
    /// 0, 1, 2, 3: none, 66, F3, F2.
    prefix: u8,
    /// ModRM.reg.
    reg: usize,
    /// ModRM.rm where it names a register.
    rm: Option<usize>,
    vvvv: usize,
    /// Address of a memory operand, without its index: that is what tiles' rows start from.
    address: u64,
    /// Index times scale: bytes from one row to the next.
    stride: u64,
    len: usize,
}

/// The numbers of registers in instructions, as places in `gregs`.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

impl Instruction {
    fn decode(at: u64, registers: &[libc::greg_t]) -> Option<Self> {
        // SAFETY: the processor has just fetched from there, and no byte is read before those in
        // front of it have shown that it belongs to the instruction.
        let byte = |i: usize| unsafe { *(at as *const u8).add(i) };
        if byte(0) != 0xc4 {
            return None;
        }
        let (first, second) = (byte(1), byte(2));
        // Three bits of register numbers are stored inverted.
        let more = |bit: u8| usize::from(!first >> bit & 1) * 8;
        if first & 31 != 2 || second & 0x84 != 0 {
            return None;
        }
        let (opcode, modrm) = (byte(3), byte(4));
        let mut decoded = Self {
            opcode,
            prefix: second & 3,
            reg: usize::from(modrm >> 3 & 7) + more(7),
            rm: None,
            vvvv: usize::from(!second >> 3 & 15),
            address: 0,
            stride: 0,
            len: 5,
        };
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            decoded.rm = Some(usize::from(rm) + more(5));
            return Some(decoded);
        }
        let value = |register: usize| registers[REGISTERS[register] as usize] as u64;
        let mut base = Some(usize::from(rm));
        if rm == 4 {
            let sib = byte(5);
            decoded.len += 1;
            let index = usize::from(sib >> 3 & 7) + more(6);
            if index != 4 {
                decoded.stride = value(index) << (sib >> 6);
            }
            base = Some(usize::from(sib & 7));
        }
        let no_base = base == Some(5) && mode == 0;
        let displacement = match mode {
            1 => i64::from(byte(decoded.len) as i8),
            2 => i64::from(word(at, decoded.len)),
            _ if no_base => i64::from(word(at, decoded.len)),
            _ => 0,
        };
        decoded.len += match mode {
            1 => 1,
            2 => 4,
            _ if no_base => 4,
            _ => 0,
        };
        if no_base {
            base = None;
        }
        decoded.address = match base {
            Some(register) => value(register + more(5)),
            None if rm == 4 => 0,
            None => at + decoded.len as u64,
        };
        decoded.address = decoded.address.wrapping_add(displacement as u64);
        Some(decoded)
    }
}

/// Four bytes of an instruction.
fn word(at: u64, offset: usize) -> i32 {
    // SAFETY: the caller saw that the instruction has them.
    unsafe { (at as *const u8).add(offset).cast::<i32>().read_unaligned() }
}

const NONE: u8 = 0;
const P66: u8 = 1;
const PF3: u8 = 2;
const PF2: u8 = 3;

impl Tiles {
    /// Does what the instruction says; `None` for whatever the processor would refuse.
    fn execute(&mut self, i: &Instruction) -> Option<()> {
        match (i.opcode, i.prefix, i.rm) {
            (0x49, NONE, Some(0)) if i.reg == 0 => *self = RELEASED,
            (0x49, NONE, None) if i.reg == 0 => return self.configure(i.address),
            (0x49, P66, None) if i.reg == 0 => self.store_configuration(i.address),
            (0x49, PF2, Some(0)) => self.data[self.shape(i.reg)?.0] = [[0; 64]; 16],
            (0x4b, PF2 | P66, None) => self.load(i)?,
            (0x4b, PF3, None) => self.store(i)?,
            (0x5c, PF3, Some(a)) => self.product(i.reg, a, i.vvvv, multiply_bf16)?,
            (0x5e, _, Some(a)) => {
                let signs =
                    (i.prefix == PF2 || i.prefix == PF3, i.prefix == PF2 || i.prefix == P66);
                self.product(i.reg, a, i.vvvv, |c, a, b, rows, depth| {
                    multiply_bytes(c, a, b, (rows, depth), signs);
                })?;
            }
            _ => return None,
        }
        Some(())
    }

    /// A configured tile: number, rows, bytes of a row.
    fn shape(&self, tile: usize) -> Option<(usize, usize, usize)> {
        let usable = self.configured && tile < 8 && self.rows[tile] > 0;
        usable.then(|| (tile, self.rows[tile].into(), self.colsb[tile].into()))
    }

    fn configure(&mut self, address: u64) -> Option<()> {
        // SAFETY: the instruction reads 64 bytes there, as the processor would.
        let bytes = unsafe { (address as *const [u8; 64]).read_unaligned() };
        *self = RELEASED;
        if bytes[0] == 0 {
            return Some(());
        }
        let reserved_are_zero =
            bytes[1..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]).all(|b| *b == 0);
        if bytes[0] != 1 || !reserved_are_zero {
            return None;
        }
        for tile in 0..8 {
            let colsb = u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]);
            let rows = bytes[48 + tile];
            if colsb > 64 || rows > 16 || (colsb == 0) != (rows == 0) {
                *self = RELEASED;
                return None;
            }
            (self.rows[tile], self.colsb[tile]) = (rows, colsb);
        }
        self.configured = true;
        Some(())
    }

    fn store_configuration(&self, address: u64) {
        let mut bytes = [0u8; 64];
        bytes[0] = u8::from(self.configured);
        for tile in 0..8 {
            let colsb = self.colsb[tile].to_le_bytes();
            [bytes[16 + 2 * tile], bytes[17 + 2 * tile]] = colsb;
            bytes[48 + tile] = self.rows[tile];
        }
        // SAFETY: the instruction writes 64 bytes there, as the processor would.
        unsafe { (address as *mut [u8; 64]).write_unaligned(bytes) };
    }

    fn load(&mut self, i: &Instruction) -> Option<()> {
        let (tile, rows, colsb) = self.shape(i.reg)?;
        self.data[tile] = [[0; 64]; 16];
        for (row, to) in self.data[tile].iter_mut().take(rows).enumerate() {
            let from = i.address.wrapping_add((row as u64).wrapping_mul(i.stride));
            // SAFETY: the instruction reads these bytes, and no others, as the processor would.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), colsb) };
        }
        Some(())
    }

    fn store(&self, i: &Instruction) -> Option<()> {
        let (tile, rows, colsb) = self.shape(i.reg)?;
        for (row, from) in self.data[tile].iter().take(rows).enumerate() {
            let to = i.address.wrapping_add((row as u64).wrapping_mul(i.stride));
            // SAFETY: the instruction writes these bytes, and no others, as the processor would.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, colsb) };
        }
        Some(())
    }

    /// `c += a b` by `multiply`, which gets the rows of c and those of b.
    fn product(
        &mut self,
        c: usize,
        a: usize,
        b: usize,
        multiply: impl Fn(&mut Tile, &Tile, &Tile, usize, usize),
    ) -> Option<()> {
        let (_, c_rows, c_colsb) = self.shape(c)?;
        let (_, a_rows, a_colsb) = self.shape(a)?;
        let (_, b_rows, b_colsb) = self.shape(b)?;
        let shapes_fit = c_rows == a_rows && c_colsb == b_colsb && a_colsb == 4 * b_rows;
        if c == a || c == b || a == b || !shapes_fit || !c_colsb.is_multiple_of(4) {
            return None;
        }
        let (left, right) = (self.data[a], self.data[b]);
        multiply(&mut self.data[c], &left, &right, c_rows, b_rows);
        PRODUCTS.fetch_add(1, Ordering::Relaxed);
        Some(())
    }
}

type Tile = [[u8; 64]; 16];

/// `tdpbf16ps`, all columns: those past a tile's shape are zero on both sides.
fn multiply_bf16(c: &mut Tile, a: &Tile, b: &Tile, rows: usize, depth: usize) {
    let (mut saved, flushing) = (0u32, 0x9fc0u32);
    // SAFETY: reads and writes the control register: all exceptions masked, nearest, denormals
    // flushed on both sides; it is put back before any other arithmetic. `install` saw AVX-512.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &mut saved, options(nostack));
        asm!("ldmxcsr [{}]", in(reg) &flushing, options(nostack));
        multiply_bf16_flushing(c, a, b, rows, depth);
        asm!("ldmxcsr [{}]", in(reg) &saved, options(nostack));
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f")]
fn multiply_bf16_flushing(c: &mut Tile, a: &Tile, b: &Tile, rows: usize, depth: usize) {
    for (c, a) in c.iter_mut().zip(a).take(rows) {
        let (mut even, mut odd) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for (pair, b) in a.as_chunks::<4>().0.iter().zip(b).take(depth) {
            let pair = i32::from_le_bytes(*pair);
            // SAFETY: a row of a tile has 64 bytes.
            let b = unsafe { _mm512_loadu_si512(b.as_ptr().cast()) };
            let upper = _mm512_set1_epi32(-65536);
            let (a_even, a_odd) = (_mm512_set1_epi32(pair << 16), _mm512_set1_epi32(pair));
            let widened = |v: __m512i| _mm512_castsi512_ps(_mm512_and_si512(v, upper));
            let b_even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b));
            even = _mm512_fmadd_ps(widened(a_even), b_even, even);
            odd = _mm512_fmadd_ps(widened(a_odd), widened(b), odd);
        }
        // SAFETY: a row of a tile has 64 bytes.
        unsafe {
            let p = c.as_mut_ptr().cast::<f32>();
            let sum = _mm512_add_ps(_mm512_loadu_ps(p), _mm512_add_ps(even, odd));
            _mm512_storeu_ps(p, sum);
        }
    }
}

/// `tdpb..d`: `signs` says of which side bytes are signed.
fn multiply_bytes(
    c: &mut Tile,
    a: &Tile,
    b: &Tile,
    (rows, depth): (usize, usize),
    signs: (bool, bool),
) {
    let wide = |byte: u8, signed: bool| {
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    for (c, a) in c.iter_mut().zip(a).take(rows) {
        let mut sums = [0i32; 16];
        for (four, b) in a.as_chunks::<4>().0.iter().zip(b).take(depth) {
            let four = four.map(|byte| wide(byte, signs.0));
            for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
                let b = b.map(|byte| wide(byte, signs.1));
                *sum += four[0] * b[0] + four[1] * b[1] + four[2] * b[2] + four[3] * b[3];
            }
        }
        for (c, sum) in c.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            *c = i32::from_le_bytes(*c).wrapping_add(sum).to_le_bytes();
        }
    }
}

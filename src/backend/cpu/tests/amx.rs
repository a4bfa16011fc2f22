//! AMX: on the machine's own, or on the emulator of `tests/amx` where it has none.

/// Makes the path available, by the emulator if the machine lacks it; says which.
pub(super) fn emulate() {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    x86::emulate();
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod x86 {
    use std::arch::asm;
    use std::sync::Once;

    use super::super::amx_emulator as emulator;
    use super::super::*;
    use crate::backend::cpu::linear::InputForm;
    use crate::backend::cpu::linear::quantized::row_bytes;
    use crate::config::Quantization;

    pub(super) fn emulate() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            if crate::backend::cpu::amx::is_native() || !isa::is_available(CpuIsa::Avx512) {
                return;
            }
            emulator::install();
            // SAFETY: the emulator is there, for all threads.
            unsafe { isa::assume_amx() };
            let note = b"this machine has no AMX: the path amx runs emulated\n";
            std::io::Write::write_all(&mut std::io::stderr(), note).unwrap();
        });
    }

    /// Whether there is anything to test.
    fn available() -> bool {
        paths().contains(&CpuIsa::Amx)
    }

    /// This thread's tile configuration.
    fn configuration() -> [u8; 64] {
        let mut bytes = [0xff_u8; 64];
        // SAFETY: the instruction is there, and writes 64 bytes.
        unsafe { asm!("sttilecfg [{}]", in(reg) &mut bytes, options(nostack)) };
        bytes
    }

    /// Shapes of the tiles of a product: c `[m, n]` i32 or f32, a `[m, 4 k]` bytes, b `[k, 4 n]`.
    fn configure(m: usize, n: usize, k: usize) {
        let mut bytes = [0u8; 64];
        bytes[0] = 1;
        for (tile, rows, colsb) in [(3, m, 4 * n), (5, m, 4 * k), (6, k, 4 * n)] {
            bytes[16 + 2 * tile] = colsb as u8;
            bytes[48 + tile] = rows as u8;
        }
        // SAFETY: the instruction is there; the shapes are at most 16 by 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &bytes, options(nostack)) };
        assert_eq!(configuration(), bytes);
    }

    /// Strides of the three matrices below: they are not packed.
    const STRIDES: (usize, usize, usize) = (80, 72, 128);

    macro_rules! product {
        ($dot:literal) => {
            |c: &mut [u8], a: &[u8], b: &[u8]| {
                // SAFETY: `configure` gave the shapes, and the slices hold sixteen rows.
                unsafe {
                    asm!(
                        "tileloadd tmm3, [{c}+{cs}]",
                        "tileloadd tmm5, [{a}+2*{as2}+8]",
                        "tileloadd tmm6, [{b}+{bs}-64]",
                        concat!($dot, " tmm3, tmm5, tmm6"),
                        "tilestored [{c}+{cs}], tmm3",
                        "tilezero tmm3",
                        "tilerelease",
                        c = in(reg) c.as_mut_ptr(),
                        a = in(reg) a.as_ptr().wrapping_sub(8),
                        b = in(reg) b.as_ptr().wrapping_add(64),
                        cs = in(reg) STRIDES.0,
                        as2 = in(reg) STRIDES.1 / 2,
                        bs = in(reg) STRIDES.2,
                        out("tmm3") _, out("tmm5") _, out("tmm6") _,
                        options(nostack),
                    );
                }
            }
        };
    }

    fn bytes(numbers: &mut Numbers, n: usize) -> Vec<u8> {
        (0..n).map(|_| (numbers.next() * 128.0).floor() as i32 as u8).collect()
    }

    #[test]
    fn products_of_bytes_are_exact_sums() {
        if !available() {
            return;
        }
        type Product = fn(&mut [u8], &[u8], &[u8]);
        let kinds: [(Product, bool, bool); 4] = [
            (product!("tdpbssd"), true, true),
            (product!("tdpbsud"), true, false),
            (product!("tdpbusd"), false, true),
            (product!("tdpbuud"), false, false),
        ];
        for (dot, a_signed, b_signed) in kinds {
            for (m, n, k) in [(16, 16, 16), (1, 16, 8), (7, 3, 5)] {
                let mut numbers = Numbers::new((m * n * k) as u64);
                let a = bytes(&mut numbers, 16 * STRIDES.1);
                let b = bytes(&mut numbers, 16 * STRIDES.2);
                let before = bytes(&mut numbers, 16 * STRIDES.0);
                let mut c = before.clone();
                configure(m, n, k);
                dot(&mut c, &a, &b);
                assert_eq!(configuration(), [0; 64], "released");
                let mut want = before.clone();
                let wide = |x: u8, signed| if signed { (x as i8).into() } else { i32::from(x) };
                for row in 0..m {
                    for column in 0..n {
                        let at = row * STRIDES.0 + 4 * column;
                        let mut sum = i32::from_le_bytes(before[at..at + 4].try_into().unwrap());
                        for i in 0..4 * k {
                            let x = wide(a[row * STRIDES.1 + i], a_signed);
                            let y = b[i / 4 * STRIDES.2 + 4 * column + i % 4];
                            sum = sum.wrapping_add(x * wide(y, b_signed));
                        }
                        want[at..at + 4].copy_from_slice(&sum.to_le_bytes());
                    }
                }
                // The bytes between and behind are as they were, too.
                assert_eq!(c, want, "{m}x{n}x{k} {a_signed} {b_signed}");
            }
        }
    }

    /// Denormals count as zero and become zero.
    fn flush(x: f32) -> f32 {
        if x.is_subnormal() { 0f32.copysign(x) } else { x }
    }

    #[test]
    fn products_of_bf16_round_as_the_manual_says() {
        if !available() {
            return;
        }
        for (seed, (m, n, k)) in [(16, 16, 16), (1, 16, 16), (5, 7, 3)].into_iter().enumerate() {
            for exponent in [1.0, 1e-19, 3e-20, 1e19] {
                let mut numbers = Numbers::new(seed as u64 + 1);
                let mut halves = |n: usize| -> Vec<u16> {
                    let value = |v: f32| half::bf16::from_f32(v * exponent).to_bits();
                    (0..n / 2).map(|_| value(numbers.next())).collect()
                };
                let (mut a, mut b) = (halves(16 * STRIDES.1), halves(16 * STRIDES.2));
                // A denormal on either side, which would show beside great numbers.
                (a[0], b[1]) = (0x0040, 0x8020);
                (a[1], b[0]) = (0x7f00, 0x7f00);
                let before = Numbers::new(9).take(16 * STRIDES.0 / 4);
                let as_bytes =
                    |v: &[u16]| -> Vec<u8> { v.iter().flat_map(|h| h.to_le_bytes()).collect() };
                let mut c: Vec<u8> = before.iter().flat_map(|v| v.to_le_bytes()).collect();
                configure(m, n, k);
                product!("tdpbf16ps")(&mut c, &as_bytes(&a), &as_bytes(&b));
                let value = |h: u16| flush(half::bf16::from_bits(h).to_f32());
                for (at, found) in c.chunks_exact(4).enumerate() {
                    let found = f32::from_le_bytes(found.try_into().unwrap());
                    let (row, column) = (at / (STRIDES.0 / 4), at % (STRIDES.0 / 4));
                    let mut want = before[at];
                    if row < m && column < n {
                        let mut chains = [0f32; 2];
                        for i in 0..2 * k {
                            let x = value(a[row * STRIDES.1 / 2 + i]);
                            let y = value(b[i / 2 * STRIDES.2 / 2 + 2 * column + i % 2]);
                            chains[i % 2] = flush(x.mul_add(y, chains[i % 2]));
                        }
                        want = flush(flush(want) + flush(chains[0] + chains[1]));
                    }
                    let what = format!("{m}x{n}x{k} {exponent:e}: {row} {column}");
                    assert_eq!(found.to_bits(), want.to_bits(), "{what}: {found} {want}");
                }
            }
        }
    }

    /// The path's kernels, or those that go through tiles whatever the number of rows.
    fn layer(
        (quantization, role): (Option<Quantization>, LinearRole),
        isa: CpuIsa,
        tiles: bool,
        (n, k): (usize, usize),
    ) -> (CpuBackend, LinearId) {
        let mut b = super::super::quantized(ComputeType::Bf16, quantization, isa, 2);
        if tiles {
            b.kernels = kernels::plain(isa);
        }
        let part = Matrix::random(DType::F32, n, k, 1).part(Some(Numbers::new(3).take(n)));
        let spec = LinearSpec { parts: vec![part], role };
        let weight = b.pack_linear(spec).unwrap();
        (b, weight)
    }

    fn product(
        (mut b, weight): (CpuBackend, LinearId),
        (rows, n, k): (usize, usize, usize),
        x: &[f32],
    ) -> Vec<u32> {
        let (input, out) = (b.activation(k), b.activation(n));
        allocate(&mut b, rows, TINY, (16, 2));
        write(&b, input, x);
        begin(&mut b, rows);
        b.linear(weight, input, out);
        b.finish_step().unwrap();
        bits(&read(&b, out, rows))
    }

    /// bf16, 8 bits, 4 bits and 6 bits.
    const KINDS: [(Option<Quantization>, LinearRole); 4] = [
        (None, LinearRole::Hidden),
        (Some(Quantization::Int8), LinearRole::Hidden),
        (Some(Quantization::Int4), LinearRole::Hidden),
        (Some(Quantization::Int4), LinearRole::Vocabulary),
    ];

    #[test]
    fn strips_groups_and_blocks_change_nothing() {
        if !available() {
            return;
        }
        // Blocks along K, groups of panels with an odd one at the end, whole strips and parts.
        let (most, n, k) = (70, 16 * 35 + 5, 1100);
        let x = Numbers::new(5).take(most * k);
        for kind in KINDS {
            let run = |isa, tiles, rows: Range<usize>| {
                let x = &x[rows.start * k..rows.end * k];
                product(layer(kind, isa, tiles, (n, k)), (rows.len(), n, k), x)
            };
            let before = emulator::products();
            let whole = run(CpuIsa::Amx, true, 0..most);
            let emulated = !crate::backend::cpu::amx::is_native();
            assert_eq!(emulator::products() > before, emulated, "tiles were multiplied");
            for rows in [0..1, 3..5, 60..69, 30..46, 10..27, 2..34, 7..70] {
                for tiles in [true, false] {
                    let some = run(CpuIsa::Amx, tiles, rows.clone());
                    let what = format!("{kind:?} {rows:?} {tiles}");
                    assert!(some == whole[rows.start * n..rows.end * n], "{what}");
                }
            }
            if kind.0.is_some() && isa::is_available(CpuIsa::Avx512) {
                let vectors = run(CpuIsa::Avx512, false, 0..most);
                assert!(whole == vectors, "{kind:?}: tiles and vectors differ");
            }
        }
    }

    #[test]
    fn tiles_are_released_after_every_kernel() {
        if !available() {
            return;
        }
        for kind in KINDS {
            for rows in [1, 17, 40] {
                let x = Numbers::new(5).take(rows * 64);
                product(layer(kind, CpuIsa::Amx, true, (48, 64)), (rows, 48, 64), &x);
                assert_eq!(configuration(), [0; 64], "{kind:?}, {rows} rows");
            }
        }
    }

    /// Memory whose end is followed by a page that may not be touched.
    struct Guarded {
        start: *mut u8,
    }

    const PAGE: usize = 4096;
    const PAGES: usize = 16;

    impl Guarded {
        fn new() -> Self {
            let (size, private) = ((PAGES + 1) * PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a fresh mapping; its last page is closed before anybody knows it.
            unsafe {
                let start = libc::mmap(std::ptr::null_mut(), size, access, private, -1, 0);
                assert_ne!(start, libc::MAP_FAILED);
                let guard = start.byte_add(PAGES * PAGE);
                assert_eq!(libc::mprotect(guard, PAGE, libc::PROT_NONE), 0);
                Self { start: start.cast() }
            }
        }

        fn last(&self, bytes: usize) -> *mut u8 {
            self.start.wrapping_add(PAGES * PAGE - bytes)
        }
    }

    impl Drop for Guarded {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours, and whole.
            unsafe { libc::munmap(self.start.cast(), (PAGES + 1) * PAGE) };
        }
    }

    #[test]
    fn nothing_past_the_last_row_is_read_or_written() {
        if !available() {
            return;
        }
        let (n, k) = (37, 96);
        for (kind, storage) in KINDS.into_iter().zip([0, 4, 5, 6]) {
            let (b, weight) = layer(kind, CpuIsa::Amx, true, (n, k));
            let packed = &b.linears[weight.0 as usize];
            for rows in [1, 15, 16, 17, 31, 33] {
                let row_bytes = match packed.storage.input_form(true) {
                    InputForm::Int8 { group, .. } => row_bytes(packed.k_padded, group),
                    _ => 2 * k,
                };
                let (inputs, outputs) = (Guarded::new(), Guarded::new());
                let mut args = packed.args();
                args.x = inputs.last(rows * row_bytes);
                args.ldx = if kind.0.is_none() { k } else { row_bytes };
                (args.out, args.ldo) = (outputs.last(rows * n * 4).cast(), n);
                args.rows = rows;
                // SAFETY: all of it was just laid out; zeros are inputs of any kind.
                unsafe { (b.kernels.linear[storage])(&args, 0..n.div_ceil(16)) };
                // SAFETY: the kernel wrote them.
                let last = unsafe { *args.out.add(rows * n - 1) };
                assert_eq!(last, Numbers::new(3).take(n)[n - 1], "the bias alone");
            }
        }
    }
}

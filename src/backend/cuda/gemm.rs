//! Matrix products in bf16, by cuBLASLt: `y = x W^T`, or `y += x W^T`, sums in f32.
//!
//! Rows are rounded up to a few sizes; what the rows past the step's give is never read. An
//! algorithm is chosen once for a class of sizes (`tune`) and serves all of them.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys;

use super::driver::{DevicePtr, Stream};
use super::library::{Library, describe_search, preload};
use super::tune::{self, CANDIDATES, Choices};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of scratch that algorithms may use.
pub(super) const WORKSPACE: usize = 32 << 20;

/// CUBLAS_OP_T of cuBLAS's `cublasOperation_t`, which cuBLASLt takes too.
const OP_T: i32 = 1;

/// Rows that a product of `rows` is computed with.
pub(super) fn padded_rows(rows: usize) -> usize {
    match rows {
        0..=16 => rows.next_power_of_two(),
        17..=64 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(64),
    }
}

/// Rows, at most so many, that stand for theirs where an algorithm is chosen: each power of two
/// and the middle of the way to the next.
fn class_rows(rows: usize) -> usize {
    if rows <= 64 {
        return rows;
    }
    let power = 1 << rows.ilog2();
    if rows >= power + power / 2 { power + power / 2 } else { power }
}

/// One product.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// `[padded_rows, k]` of bf16.
    pub(super) x: DevicePtr,
    /// `[n, k]` of bf16.
    pub(super) weight: DevicePtr,
    /// `[padded_rows, n]` of f32.
    pub(super) y: DevicePtr,
    pub(super) size: Size,
    /// Adds to `y`.
    pub(super) accumulate: bool,
}

/// The size of a product; `rows` are padded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Size {
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// cuBLASLt, and what was chosen for each size.
pub(super) struct Gemm {
    plans: HashMap<Size, Plan>,
    /// By class of sizes.
    chosen: HashMap<Size, sys::cublasLtMatmulAlgo_t>,
    choices: Choices,
    handle: Handle,
    workspace: DevicePtr,
}

impl Gemm {
    /// Opens the library, for a device of this name. `workspace` is device memory of `WORKSPACE`
    /// bytes.
    pub(super) fn new(workspace: DevicePtr, device: &str) -> Result<Self> {
        preload(Library::CublasLt);
        // SAFETY: opening the library runs its constructors, which is what it is for.
        if !unsafe { sys::is_culib_present() } {
            let message = format!(
                "device: bfloat16 needs libcublasLt.so.13 (pip's nvidia-cublas, or the CUDA \
                 toolkit), which is in none of {}",
                describe_search()
            );
            return Err(Error::new(ErrorKind::Unsupported, message).with("field", "device"));
        }
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is written.
        check("cublasLtCreate", unsafe { sys::cublasLtCreate(&mut raw) })?;
        let handle = Handle(raw);
        // SAFETY: the library is there.
        let choices = Choices::new(device, unsafe { sys::cublasLtGetVersion() });
        Ok(Self { plans: HashMap::new(), chosen: HashMap::new(), choices, handle, workspace })
    }

    /// Chooses an algorithm for the product's size, unless there is one.
    ///
    /// # Safety
    /// As for `multiply`; what `y` holds is lost.
    pub(super) unsafe fn prepare(&mut self, stream: &Stream, product: &Product) -> Result<()> {
        let size = product.size;
        if self.plans.contains_key(&size) {
            return Ok(());
        }
        let mut plan = Plan::new(size)?;
        // SAFETY: as this function's contract.
        let chosen = unsafe { self.choose(stream, product)? };
        plan.algorithm = match plan.takes(&self.handle, &chosen) {
            true => chosen,
            false => *plan.candidates(&self.handle)?.first().ok_or_else(|| no_algorithm(size))?,
        };
        self.plans.insert(size, plan);
        Ok(())
    }

    /// The algorithm of the class that the product's size is of.
    ///
    /// # Safety
    /// As for `prepare`.
    unsafe fn choose(
        &mut self,
        stream: &Stream,
        product: &Product,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let size = Size { rows: class_rows(product.size.rows), ..product.size };
        if let Some(chosen) = self.chosen.get(&size) {
            return Ok(*chosen);
        }
        let (plan, product) = (Plan::new(size)?, Product { size, ..*product });
        let known = self.choices.read(size).filter(|known| plan.takes(&self.handle, known));
        let chosen = match known {
            Some(known) => known,
            None => {
                let candidates = plan.candidates(&self.handle)?;
                // SAFETY: as this function's contract; the class has no more rows than the product.
                let launch = |a: &_| unsafe { self.launch(stream, &product, &plan, a) };
                let fastest = tune::fastest(stream, &candidates, &launch)?;
                let fastest = fastest.ok_or_else(|| no_algorithm(size))?;
                self.choices.write(size, &fastest);
                fastest
            }
        };
        self.chosen.insert(size, chosen);
        Ok(chosen)
    }

    /// Adds a product to the stream; its size was prepared.
    ///
    /// # Safety
    /// The addresses hold matrices of the product's size until the stream has run it.
    pub(super) unsafe fn multiply(&self, stream: &Stream, product: &Product) -> Result<()> {
        let plan = self.plans.get(&product.size).expect("a product's size is prepared");
        // SAFETY: as this function's contract.
        unsafe { self.launch(stream, product, plan, &plan.algorithm) }
    }

    /// # Safety
    /// As for `multiply`.
    unsafe fn launch(
        &self,
        stream: &Stream,
        product: &Product,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<()> {
        let (alpha, beta) = (1.0_f32, f32::from(u8::from(product.accumulate)));
        // SAFETY: the plan's layouts are those of the matrices; scalars are read at once, the
        // matrices as this function's contract says. C is D.
        check("cublasLtMatmul", unsafe {
            sys::cublasLtMatmul(
                self.handle.0,
                plan.desc.0,
                ptr::from_ref(&alpha).cast(),
                product.weight as *const c_void,
                plan.a.0,
                product.x as *const c_void,
                plan.b.0,
                ptr::from_ref(&beta).cast(),
                product.y as *const c_void,
                plan.d.0,
                product.y as *mut c_void,
                plan.d.0,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.raw().cast(),
            )
        })
    }
}

struct Handle(sys::cublasLtHandle_t);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtDestroy(self.0) };
    }
}

/// What cuBLASLt wants to know of a size. Its matrices are column-major: `W` transposed is A,
/// `x` is B, `y` is C and D.
struct Plan {
    desc: Desc,
    a: Layout,
    b: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    /// Without an algorithm yet.
    fn new(size: Size) -> Result<Self> {
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let (rows, n, k) = (size.rows as u64, size.n as u64, size.k as u64);
        let desc = Desc::new()?;
        let (a, b) = (Layout::new(CUDA_R_16BF, k, n)?, Layout::new(CUDA_R_16BF, k, rows)?);
        let d = Layout::new(CUDA_R_32F, n, rows)?;
        Ok(Self { desc, a, b, d, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } })
    }

    /// What the library proposes, best first; at least one.
    fn candidates(&self, handle: &Handle) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new()?;
        type Found = std::mem::MaybeUninit<sys::cublasLtMatmulHeuristicResult_t>;
        let mut found = [const { Found::zeroed() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: everything lives; `found` has room for the results that are asked for.
        check("cublasLtMatmulAlgoGetHeuristic", unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle.0,
                self.desc.0,
                self.a.0,
                self.b.0,
                self.d.0,
                self.d.0,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        })?;
        let count = usize::try_from(count).unwrap_or(0).min(CANDIDATES);
        // SAFETY: so many results were written.
        let results = found[..count].iter().map(|found| unsafe { found.assume_init() });
        let good = |r: &sys::cublasLtMatmulHeuristicResult_t| {
            r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        Ok(results.filter(good).map(|result| result.algo).collect())
    }

    /// Whether the library can compute this product by `algorithm` in the workspace that it has.
    fn takes(&self, handle: &Handle, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let (a, b, d) = (self.a.0, self.b.0, self.d.0);
        // SAFETY: everything lives; `found` has room for the result.
        let code = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle.0,
                self.desc.0,
                a,
                b,
                d,
                d,
                algorithm,
                found.as_mut_ptr(),
            )
        };
        // SAFETY: zeroed, which is a valid result, or written.
        let found = unsafe { found.assume_init() };
        code == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= WORKSPACE
    }
}

fn no_algorithm(Size { rows, n, k }: Size) -> Error {
    let message = format!("cuBLASLt has no algorithm for {rows} x {n} x {k} in bfloat16");
    Error::new(ErrorKind::Device, message)
}

struct Desc(sys::cublasLtMatmulDesc_t);

impl Desc {
    fn new() -> Result<Self> {
        let mut raw = ptr::null_mut();
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: `raw` is written.
        check("cublasLtMatmulDescCreate", unsafe {
            sys::cublasLtMatmulDescCreate(&mut raw, compute, sys::cudaDataType_t::CUDA_R_32F)
        })?;
        let desc = Self(raw);
        let transposed = OP_T;
        // SAFETY: the attribute is an int32, which is read at once.
        check("cublasLtMatmulDescSetAttribute", unsafe {
            sys::cublasLtMatmulDescSetAttribute(
                desc.0,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                ptr::from_ref(&transposed).cast(),
                size_of_val(&transposed),
            )
        })?;
        Ok(desc)
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// `cols` columns of `rows`, one after the other.
    fn new(dtype: sys::cudaDataType_t, rows: u64, cols: u64) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is written.
        check("cublasLtMatrixLayoutCreate", unsafe {
            sys::cublasLtMatrixLayoutCreate(&mut raw, dtype, rows, cols, rows as i64)
        })?;
        Ok(Self(raw))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is written.
        check("cublasLtMatmulPreferenceCreate", unsafe {
            sys::cublasLtMatmulPreferenceCreate(&mut raw)
        })?;
        let preference = Self(raw);
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let workspace = WORKSPACE as u64;
        // SAFETY: the attribute is a uint64, which is read at once.
        check("cublasLtMatmulPreferenceSetAttribute", unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(
                preference.0,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                ptr::from_ref(&workspace).cast(),
                size_of_val(&workspace),
            )
        })?;
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

fn check(call: &str, code: sys::cublasStatus_t) -> Result<()> {
    let kind = match code {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => return Ok(()),
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => ErrorKind::DeviceMemory,
        _ => ErrorKind::Device,
    };
    Err(Error::new(kind, format!("cuBLASLt's {call} failed: {code:?}")).with("call", call))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_few_sizes() {
        let padded = [1, 2, 3, 5, 16, 17, 33, 64, 65, 2048].map(padded_rows);
        assert_eq!(padded, [1, 2, 4, 8, 16, 32, 48, 64, 128, 2048]);
    }

    #[test]
    fn classes_are_few_and_not_larger_than_their_sizes() {
        let classes = [1, 48, 64, 128, 192, 320, 448, 1024, 8128].map(class_rows);
        assert_eq!(classes, [1, 48, 64, 128, 192, 256, 384, 1024, 6144]);
        assert!((1..9000).all(|rows| class_rows(rows) <= rows && 3 * class_rows(rows) >= 2 * rows));
    }
}

//! Which of cuBLASLt's algorithms computes a product: the fastest of those that the library
//! proposes, timed when a class of sizes comes for the first time on a machine, and kept on disk.
//! An engine that starts again computes every size as it did before, and so comes to the same bits.
//!
//! A choice's file is named after everything that it depends on, and is written and checked as a
//! cubin's is; one that is damaged, or that the library does not take, is timed again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t as Algorithm;
use sha2::{Digest, Sha256};

use super::compile::{cache_folder, read_cached, write_cached};
use super::driver::Stream;
use super::gemm::{Size, WORKSPACE};
use crate::error::Result;

/// Algorithms that are timed, of those that the library thinks best.
pub(super) const CANDIDATES: usize = 8;
/// Most time that the launches of one round take, as far as one launch fits.
const ROUND: Duration = Duration::from_millis(1);
/// Most launches of a round.
const MOST_LAUNCHES: u32 = 10;
/// Rounds; the best one counts.
const ROUNDS: usize = 3;
/// By how much an algorithm must be faster than the library's own first choice.
const GAIN: f64 = 0.97;

/// The choices on disk, for one device and version of the library.
pub(super) struct Choices {
    folder: Option<PathBuf>,
    of: String,
}

impl Choices {
    pub(super) fn new(device: &str, version: usize) -> Self {
        let of = format!("cuBLASLt {version}, {device}, bf16 x bf16 to f32, {WORKSPACE}");
        Self { folder: cache_folder(), of }
    }

    pub(super) fn read(&self, size: Size) -> Option<Algorithm> {
        let bytes = read_cached(&self.file(size)?)?;
        let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let data: Vec<u64> = words.collect();
        Some(Algorithm { data: data.try_into().ok()? })
    }

    pub(super) fn write(&self, size: Size, algorithm: &Algorithm) {
        let Some(file) = self.file(size) else { return };
        let bytes: Vec<u8> = algorithm.data.iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Err(e) = write_cached(&file, &bytes) {
            tracing::debug!("a choice of algorithm is not kept in {}: {e}", file.display());
        }
    }

    fn file(&self, size: Size) -> Option<PathBuf> {
        let Size { rows, n, k } = size;
        let key = Sha256::digest(format!("{}, {rows} x {n} x {k}", self.of));
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(self.folder.as_ref()?.join(format!("{name}.product")))
    }
}

/// The fastest of `candidates`, which come best first as the library thinks, by launching them.
/// `None` where none can be launched.
pub(super) fn fastest(
    stream: &Stream,
    candidates: &[Algorithm],
    launch: &dyn Fn(&Algorithm) -> Result<()>,
) -> Result<Option<Algorithm>> {
    let [only] = candidates else {
        let mut best: Option<(f64, Algorithm)> = None;
        stream.synchronize()?;
        for candidate in candidates {
            let Some(seconds) = time(stream, &|| launch(candidate))? else { continue };
            if best.is_none_or(|(least, _)| seconds < GAIN * least) {
                best = Some((seconds, *candidate));
            }
        }
        return Ok(best.map(|(_, algorithm)| algorithm));
    };
    Ok(Some(*only))
}

/// Seconds of a launch; `None` where it cannot be launched. The stream is idle.
fn time(stream: &Stream, launch: &dyn Fn() -> Result<()>) -> Result<Option<f64>> {
    if launch().is_err() {
        return Ok(None);
    }
    stream.synchronize()?;
    let round = |launches: u32| -> Result<f64> {
        let began = Instant::now();
        (0..launches).try_for_each(|_| launch())?;
        stream.synchronize()?;
        Ok(began.elapsed().as_secs_f64() / f64::from(launches))
    };
    let one = round(1)?;
    if one > ROUND.as_secs_f64() {
        return Ok(Some(one));
    }
    let launches = ((ROUND.as_secs_f64() / one) as u32).clamp(1, MOST_LAUNCHES);
    let mut best = one;
    for _ in 0..ROUNDS {
        best = best.min(round(launches)?);
    }
    Ok(Some(best))
}

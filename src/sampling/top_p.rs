//! Top-p: where in a row the most likely tokens have the wanted share of the mass.
//!
//! ```text
//!  scaled logits ─► mass by bucket ─► the bucket in which the share is reached ─► sorted: its last
//! ```
//! Buckets are ranges of the scaled logit, so only one of them is ever sorted.

use super::filters::{Candidate, descending, push_where};
use super::logprobs::fast_exp;
use super::row::{CHUNK, token};
use crate::error::Result;
use crate::os::{Loops, vectorised};

/// Numbers of one row on the way.
#[derive(Default)]
pub(super) struct Room {
    /// Scaled logits, at most 0; -inf is a token that may not be drawn.
    pub(super) scaled: Vec<f32>,
    /// The bucket that is sorted.
    crossed: Vec<Candidate>,
    /// Mass by bucket, of every other token.
    masses: Vec<[f64; 2]>,
}

/// Candidates up to which `keep_top_p` simply sorts.
const SORT_AT_MOST: usize = 256;
/// Buckets of equal width in the scaled logit.
const BUCKETS: usize = 2048;

/// Keeps the most likely candidates until their weights reach `top_p` of all of them; the one that
/// reaches it is the last. Of equals the lowest ids stay.
pub(super) fn keep_top_p(
    candidates: &mut Vec<Candidate>,
    top_p: f32,
    room: &mut Room,
) -> Result<()> {
    if candidates.len() <= SORT_AT_MOST {
        let total: f64 = candidates.iter().map(weight).sum();
        let kept = sort_and_count(candidates, 0.0, f64::from(top_p) * total);
        candidates.truncate(kept);
        return Ok(());
    }
    // Places stand for ids: of equals the lowest place stays.
    candidates.sort_unstable_by_key(|c| c.id);
    room.scaled.clear();
    room.scaled.try_reserve(candidates.len())?;
    room.scaled.extend(candidates.iter().map(|c| c.value));
    if let Some(mut last) = last_kept(room, top_p)? {
        last.id = candidates[last.id.index()].id;
        candidates.retain(|c| descending(c, &last).is_le());
    }
    Ok(())
}

/// The last of `room.scaled` to be kept, most likely first and then by place: everything down to it
/// has `top_p` of the mass. `None` keeps all.
pub(super) fn last_kept(room: &mut Room, top_p: f32) -> Result<Option<Candidate>> {
    let Room { scaled, crossed, masses } = room;
    masses.clear();
    masses.try_reserve(BUCKETS)?;
    masses.resize(BUCKETS, [0.0; 2]);
    // What is less likely than this has less than 1 - top_p of the mass, all together.
    let tail = f64::from(1.0 - top_p) / scaled.len().max(1) as f64;
    let reach = (-tail.ln() as f32).min(80.0);
    let lowest = vectorised(Lowest(scaled)).max(-reach);
    // All equal: one bucket.
    let per_unit = if lowest < 0.0 { (BUCKETS - 1) as f32 / -lowest } else { 0.0 };
    vectorised(Weigh { scaled, per_unit, masses });
    let masses = masses.iter().map(|[even, odd]| even + odd);
    let target = f64::from(top_p) * masses.clone().sum::<f64>();
    let mut above = 0.0;
    let crossing = masses.into_iter().position(|mass| {
        let crosses = above + mass >= target;
        above += if crosses { 0.0 } else { mass };
        crosses
    });
    // Rounding: the weights end just short of the target.
    let Some(crossing) = crossing else { return Ok(None) };
    crossed.clear();
    vectorised(Members { scaled, per_unit, bucket: crossing as u32, out: crossed })?;
    let kept = sort_and_count(crossed, above, target);
    Ok(kept.checked_sub(1).map(|last| crossed[last]))
}

/// Fills `out` with the tokens of a row down to `last`.
pub(super) fn collect_kept(
    scaled: &[f32],
    last: Option<Candidate>,
    out: &mut Vec<Candidate>,
) -> Result<()> {
    let last = last.unwrap_or(Candidate { value: -f32::MAX, id: token(usize::MAX) });
    out.clear();
    vectorised(Kept { scaled, last, out })
}

/// The bucket of a scaled logit: monotone, so that buckets are ranges.
#[inline(always)]
fn bucket(scaled: f32, per_unit: f32) -> u32 {
    /// From here to twice as much a float is an integer and its last bits count.
    const INTEGERS: f32 = 8_388_608.0;
    let at = -scaled * per_unit;
    // Infinity times 0 is no number, and of the only bucket.
    let at = if at < (BUCKETS - 1) as f32 { at } else { (BUCKETS - 1) as f32 };
    (at + INTEGERS).to_bits() & (BUCKETS - 1) as u32
}

/// The least finite value.
struct Lowest<'a>(&'a [f32]);

impl Loops for Lowest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut least = [0.0f32; 16];
        let lanes = self.0.chunks_exact(16);
        for (i, x) in lanes.remainder().iter().enumerate() {
            least[i] = if *x < 0.0 && *x > f32::NEG_INFINITY { *x } else { 0.0 };
        }
        for lane in lanes {
            for i in 0..16 {
                let lower = lane[i] < least[i] && lane[i] > f32::NEG_INFINITY;
                least[i] = if lower { lane[i] } else { least[i] };
            }
        }
        least.into_iter().fold(0.0, |m, x| if x < m { x } else { m })
    }
}

/// Adds the weights of all tokens to their buckets, in one order.
struct Weigh<'a> {
    scaled: &'a [f32],
    per_unit: f32,
    masses: &'a mut [[f64; 2]],
}

impl Loops for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Ok(masses) = <&mut [[f64; 2]; BUCKETS]>::try_from(self.masses) else { return };
        let (chunks, rest) = self.scaled.as_chunks::<CHUNK>();
        for chunk in chunks {
            let (mut weights, mut places) = ([0.0; CHUNK], [0; CHUNK]);
            for ((weight, place), z) in weights.iter_mut().zip(&mut places).zip(chunk) {
                (*weight, *place) = (fast_exp(*z), bucket(*z, self.per_unit));
            }
            if places.iter().fold(u32::MAX, |m, p| m.min(*p)) == BUCKETS as u32 - 1 {
                // Far below: adding up first spares one chain of additions in memory.
                masses[BUCKETS - 1][0] += f64::from(sum(&weights));
                continue;
            }
            // Two sets of sums, lest each addition wait for the one before.
            for i in (0..CHUNK).step_by(2) {
                masses[places[i] as usize % BUCKETS][0] += f64::from(weights[i]);
                masses[places[i + 1] as usize % BUCKETS][1] += f64::from(weights[i + 1]);
            }
        }
        for &z in rest {
            masses[bucket(z, self.per_unit) as usize % BUCKETS][0] += f64::from(fast_exp(z));
        }
    }
}

#[inline(always)]
fn sum(weights: &[f32; CHUNK]) -> f32 {
    let mut sums = [0.0f32; 16];
    for lanes in weights.as_chunks::<16>().0 {
        for i in 0..16 {
            sums[i] += lanes[i];
        }
    }
    sums.iter().sum()
}

/// The tokens of one bucket.
struct Members<'a> {
    scaled: &'a [f32],
    per_unit: f32,
    bucket: u32,
    out: &'a mut Vec<Candidate>,
}

impl Loops for Members<'_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        let Self { scaled, per_unit, bucket: wanted, out } = self;
        for (c, chunk) in scaled.chunks(CHUNK).enumerate() {
            let is_in = |z: &f32| bucket(*z, per_unit) == wanted;
            if chunk.iter().fold(false, |any, z| any | is_in(z)) {
                out.try_reserve(CHUNK)?;
                push_where(chunk, c * CHUNK, out, |_, z| bucket(z, per_unit) == wanted);
            }
        }
        Ok(())
    }
}

/// The tokens down to one.
struct Kept<'a> {
    scaled: &'a [f32],
    last: Candidate,
    out: &'a mut Vec<Candidate>,
}

impl Loops for Kept<'_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        let (least, last_place) = (self.last.value, self.last.id.index());
        for (c, chunk) in self.scaled.chunks(CHUNK).enumerate() {
            if chunk.iter().fold(false, |any, z| any | (*z >= least)) {
                self.out.try_reserve(CHUNK)?;
                push_where(chunk, c * CHUNK, self.out, |place, z| {
                    (z > least) | ((z == least) & (place <= last_place))
                });
            }
        }
        Ok(())
    }
}

/// Sorts, most likely first, and counts the candidates until `above` and their weights reach
/// `target`: at least one if `above` is 0.
fn sort_and_count(candidates: &mut [Candidate], mut above: f64, target: f64) -> usize {
    candidates.sort_unstable_by(descending);
    let mut kept = 0;
    while kept < candidates.len() && (above == 0.0 || above < target) {
        above += weight(&candidates[kept]);
        kept += 1;
    }
    kept
}

/// Unnormalised probability.
fn weight(c: &Candidate) -> f64 {
    f64::from(fast_exp(c.value))
}

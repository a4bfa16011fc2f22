//! Cubins that came with the library: the feature `prebuilt-kernels`.

use super::kernels::Source;

#[cfg(feature = "prebuilt-kernels")]
include!(concat!(env!("OUT_DIR"), "/prebuilt.rs"));
/// Architecture, file and machine code.
#[cfg(not(feature = "prebuilt-kernels"))]
const PREBUILT: &[(&str, &str, &[u8])] = &[];

/// The cubins of `programs`, in order, for a device of that architecture; none if one is missing.
pub(super) fn cubins(programs: &[Source], architecture: &str) -> Option<Vec<&'static [u8]>> {
    let made_for = best(PREBUILT.iter().map(|(arch, ..)| *arch), architecture)?;
    let cubin = |program: &Source| {
        let mut all = PREBUILT.iter();
        let found = all.find(|(arch, file, _)| *arch == made_for && *file == program.name);
        found.map(|(.., cubin)| *cubin)
    };
    programs.iter().map(cubin).collect()
}

/// Which of the architectures serves a device best: its own, or else the newest before it of the
/// same family. Those that end in a letter serve no other.
fn best<'a>(made: impl Iterator<Item = &'a str>, device: &str) -> Option<&'a str> {
    let number = |arch: &str| arch.strip_prefix("sm_")?.parse::<u32>().ok();
    let serves = |arch: &&str| {
        *arch == device
            || match (number(arch), number(device)) {
                (Some(arch), Some(device)) => arch / 10 == device / 10 && arch <= device,
                _ => false,
            }
    };
    made.filter(serves).max_by_key(|arch| (*arch == device, number(arch)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_its_own_cubins_or_older_ones_of_its_family() {
        let made = ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"];
        let best = |device| best(made.into_iter(), device);
        assert_eq!(best("sm_80"), Some("sm_80"));
        assert_eq!(best("sm_86"), Some("sm_80"));
        assert_eq!(best("sm_89"), Some("sm_89"));
        assert_eq!(best("sm_90a"), Some("sm_90a"));
        assert_eq!(best("sm_100a"), Some("sm_100a"));
        assert_eq!(best("sm_103a"), None);
        assert_eq!(best("sm_121"), Some("sm_120"));
        assert_eq!(best("sm_130"), None);
    }
}

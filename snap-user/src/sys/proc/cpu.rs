//! The processor, as `/proc/cpuinfo` has it.

use super::read;
use crate::sys::Result;
use crate::sys::arch::PROGRAM_FEATURES;

/// What the processor has that programs can use, by the kernel's names, ascending. Only what all processors of the
/// machine have counts.
pub fn processor_features() -> Result<Vec<String>> {
    let text = read("/proc/cpuinfo".into())?;
    Ok(features(&String::from_utf8_lossy(&text), PROGRAM_FEATURES))
}

fn features(text: &str, known: &[&str]) -> Vec<String> {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| matches!(name.trim(), "flags" | "Features"))
        .map(|(_, flags)| flags.split_whitespace().collect())
        .collect();
    let Some((first, others)) = lines.split_first() else {
        return Vec::new();
    };
    let mut found: Vec<String> = first
        .iter()
        .filter(|flag| known.contains(flag) && others.iter().all(|line| line.contains(flag)))
        .map(|flag| (*flag).to_owned())
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_programs_use_and_all_processors_have_counts() {
        let text = "processor\t: 0\nflags\t\t: fpu avx2 smep sse2\n\nprocessor\t: 1\nflags\t\t: fpu sse2\n";
        assert_eq!(features(text, &["avx2", "fpu", "sse2"]), ["fpu", "sse2"]);
        assert!(features("", &["fpu"]).is_empty());
    }

    #[test]
    fn this_processor_has_some() {
        assert!(processor_features().unwrap().contains(&"sse2".to_owned()));
    }
}

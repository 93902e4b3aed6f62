//! Committed files that today's code still makes, byte for byte.

use std::path::Path;

/// What was `made` is the committed file of this name; `KSNAP_WRITE_GOLDEN=1` writes it anew. `advice` says what to do where
/// it is not.
pub fn assert_is_golden(name: &str, golden: &[u8], made: &[u8], advice: &str) {
    if std::env::var_os("KSNAP_WRITE_GOLDEN").is_some() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        std::fs::write(data.join(name), made).expect("the golden file can be written");
    }
    let differs = made.iter().zip(golden).position(|(a, b)| a != b);
    assert!(
        made == golden,
        "{name} has changed: {} bytes, {} in the golden file, first difference at {differs:?}. {advice}",
        made.len(),
        golden.len(),
    );
}

//! Skips that are no failure where no other is allowed.

/// What a machine may lack where everything is installed, as skips name it, and why that is left so.
const EXPECTED: [(&str, &str); 8] = [
    (
        "the soft-dirty tracker",
        "a build option of the kernel; cargo xtask test --vm 6.1 has these tests on a kernel with it",
    ),
    (
        "a kernel without one of the trackers",
        "a kernel with all of them; cargo xtask test --vm 6.1 has one without",
    ),
    (
        "a kernel that runs 32-bit programs",
        "a build option of the kernel; such programs are refused, not captured",
    ),
    (
        "netem in the kernel",
        "a module that kernels of clouds come without; connections that break are tested without it too",
    ),
    ("huge pages;", "a build option of the kernel"),
    (
        "the program azurite-blob",
        "a package of npm, whose registry a machine may have no way to; the same code is tested with S3",
    ),
    (
        "the program fake-gcs-server",
        "its makers have it in no package registry; the same code is tested with S3 and Azure",
    ),
    (
        "swapping to a file",
        "kernels and file systems without it; pages are what they are wherever they lie",
    ),
];

/// Why a skip is expected, by what it says behind the name of the test; `None` if it is not.
pub fn reason(why: &str) -> Option<&'static str> {
    let missing = why.strip_prefix("missing ")?;
    EXPECTED
        .iter()
        .find(|(what, _)| missing.starts_with(what))
        .map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_expected() {
        assert!(reason("missing the soft-dirty tracker; use a kernel with it").is_some());
        assert!(reason("missing netem in the kernel (unknown); take one with it").is_some());
        assert!(reason("missing huge pages; use a kernel with them").is_some());
        for other in [
            "missing root; run the tests as root",
            "missing the program redis-server; apt-get install redis-server",
            "missing tc netem (Operation not permitted); run the tests as root",
            "missing the right to allow huge pages; run the tests as root",
            "missing huge pages, and the right to allow them; run the tests as root",
            "the soft-dirty tracker",
            "",
        ] {
            assert_eq!(reason(other), None, "{other:?}");
        }
    }
}

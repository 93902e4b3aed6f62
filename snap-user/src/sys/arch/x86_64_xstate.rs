//! The extended state of a thread: vectors and what came after them, in the layout of XSAVE.

/// Register set number of the extended state (`NT_X86_XSTATE`).
pub const NT_EXTENDED: i32 = 0x202;
/// Enough for the extended state of any x86-64 processor to date (AMX included).
pub const EXTENDED_MAX: usize = 16 * 1024;

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of the software-reserved bytes in the legacy save area.
const SW_RESERVED: usize = 464;
/// Offset of `XSTATE_BV`, the components that are not in their initial state.
const XSTATE_BV: usize = 512;
/// Where the component behind AVX begins that is the first one on AMD's processors.
const BEHIND_AVX: usize = 832;
/// Bound registers and their configuration, which only some of Intel's processors had, and where they lie.
const MPX: (u64, std::ops::Range<usize>) = (1 << 3 | 1 << 4, 960..1088);
/// The register with the rights of protection keys, its bit, and what Linux sets it to in each process: only key 0, which all
/// memory has unless the program wants otherwise, may be used.
const PKRU: (u32, u64, u32) = (9, 1 << 9, 0x5555_5554);
/// AMX tile data: the one component that a process must ask for, and whose space is not in the
/// frame of one that has not.
const TILE_DATA: u32 = 18;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Length of the extended state without the component that must be asked for (CPUID leaf 0xd).
fn default_length(features: u64) -> usize {
    (2..TILE_DATA)
        .filter(|component| features >> component & 1 != 0)
        .map(|component| {
            let (size, at) = place_here(component);
            size + at
        })
        .fold(XSTATE_BV + 64, usize::max)
}

/// Components of the extended state that this processor and kernel have, as bits of XCR0.
pub fn extended_features() -> u64 {
    // CPUID leaf 1, bit 27 of ECX: XGETBV may be used.
    if core::arch::x86_64::__cpuid(1).ecx >> 27 & 1 == 0 {
        return 3;
    }
    let (low, high): (u32, u32);
    // SAFETY: the instruction is there, register 0 always exists, and nothing but the two outputs changes.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Where a component lies in a state of this length. Behind AVX, Intel's processors and AMD's differ; the former are known by room for
/// all of AVX-512 behind that of MPX, the latter by less.
fn place(component: u32, len: usize) -> Option<usize> {
    let is_intel = len >= 2688;
    Some(match (component, is_intel) {
        (3, _) => 960,
        (4, _) => 1024,
        (5, true) => 1088,
        (5, false) => BEHIND_AVX,
        (6, true) => 1152,
        (6, false) => 896,
        (7, true) => 1664,
        (7, false) => 1408,
        (9, true) => 2688,
        (9, false) if len >= 2440 => 2432,
        // Before AMD had AVX-512.
        (9, false) => BEHIND_AVX,
        (17, _) => 2752,
        (TILE_DATA, _) => 2816,
        (19, _) => 960,
        _ => return None,
    })
}

/// Length of a component on this machine, and where it lies (CPUID leaf 0xd).
fn place_here(component: u32) -> (usize, usize) {
    let leaf = core::arch::x86_64::__cpuid_count(0xd, component);
    (leaf.eax as usize, leaf.ebx as usize)
}

/// Components that a thread's extended state holds something in that it would miss.
pub fn extended_in_use(xstate: &[u8]) -> u64 {
    if xstate.len() <= XSTATE_BV + 8 {
        return 3;
    }
    let mut used = word(xstate, XSTATE_BV);
    let bounds = xstate.get(MPX.1);
    if bounds.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)) {
        used &= !MPX.0;
    }
    let rights = place(PKRU.0, xstate.len()).and_then(|at| xstate.get(at..at + 4));
    if rights == Some(&PKRU.2.to_le_bytes()[..]) {
        used &= !PKRU.1;
    }
    used
}

/// Names of components, for people.
pub fn extended_names(components: u64) -> String {
    const NAMES: [&str; 19] = [
        "x87",
        "SSE",
        "AVX",
        "MPX",
        "MPX",
        "AVX-512",
        "AVX-512",
        "AVX-512",
        "PT",
        "protection keys",
        "PASID",
        "shadow stacks",
        "shadow stacks",
        "HDC",
        "UINTR",
        "LBR",
        "HWP",
        "AMX",
        "AMX",
    ];
    let mut names: Vec<&str> = (0..64)
        .filter(|bit| components >> bit & 1 != 0)
        .map(|bit| NAMES.get(bit).copied().unwrap_or("newer features"))
        .collect();
    names.dedup();
    names.join(", ")
}

/// The extended state as this machine's kernel takes it, whatever the processor that the state is from had: in its own
/// length, each component in its own place. Those that are not here are left out; they must not be in use.
pub fn fit_extended(xstate: &[u8], len: usize) -> Vec<u8> {
    let is_from_here = xstate.len() == len;
    let common = match is_from_here {
        true => len,
        false => xstate.len().min(BEHIND_AVX),
    };
    let mut fitted = xstate[..common].to_vec();
    fitted.resize(len, 0);
    if xstate.len().min(len) <= XSTATE_BV + 8 {
        return fitted;
    }
    let used = word(xstate, XSTATE_BV) & extended_features();
    fitted[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&used.to_le_bytes());
    if is_from_here {
        return fitted;
    }
    for component in (3..64).filter(|component| used >> component & 1 != 0) {
        let (size, at) = place_here(component);
        let from = place(component, xstate.len()).and_then(|from| xstate.get(from..from + size));
        if let (Some(from), Some(to)) = (from, fitted.get_mut(at..at + size)) {
            to.copy_from_slice(from);
        }
    }
    fitted
}

/// Turns the extended state as ptrace gives it into what `rt_sigreturn` expects on the stack:
/// software bytes filled in and the closing mark behind it.
pub fn signal_fpstate(xstate: &[u8]) -> Vec<u8> {
    let mut out = xstate.to_vec();
    let mut features = word(xstate, SW_RESERVED);
    if word(xstate, XSTATE_BV) >> TILE_DATA & 1 == 0 {
        features &= !(1 << TILE_DATA);
        out.truncate(default_length(features));
    }
    let size = out.len() as u32;
    let mut put = |at: usize, bytes: &[u8]| {
        out[SW_RESERVED + at..SW_RESERVED + at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &FP_XSTATE_MAGIC1.to_le_bytes());
    put(4, &(size + 4).to_le_bytes());
    put(8, &features.to_le_bytes());
    put(16, &size.to_le_bytes());
    put(20, &[0; 28]);
    out.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_named_and_those_of_this_machine_are_there() {
        assert_eq!(extended_features() & 3, 3);
        assert_eq!(
            extended_names(1 << 5 | 1 << 6 | 1 << 9),
            "AVX-512, protection keys"
        );
        assert_eq!(extended_names(1 << 40), "newer features");
        let mut state = vec![0; 1024];
        state[XSTATE_BV] = 7;
        assert_eq!(extended_in_use(&state), 7);
        assert_eq!(fit_extended(&state, 2048).len(), 2048);
    }

    #[test]
    fn what_nobody_would_miss_is_not_in_use() {
        let mut state = vec![0; 2696];
        let all = 7 | MPX.0 | PKRU.1;
        state[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&all.to_le_bytes());
        assert_eq!(extended_in_use(&state), 7 | PKRU.1, "all keys may be used");
        state[2688..2692].copy_from_slice(&PKRU.2.to_le_bytes());
        assert_eq!(extended_in_use(&state), 7);
        state[1000] = 1;
        assert_eq!(extended_in_use(&state), 7 | MPX.0);
        for (len, at) in [(2440, 2432), (840, 832)] {
            let mut state = vec![0; len];
            state[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(7 | PKRU.1).to_le_bytes());
            state[at..at + 4].copy_from_slice(&PKRU.2.to_le_bytes());
            assert_eq!(extended_in_use(&state), 7, "{len}");
        }
    }

    #[test]
    fn components_come_to_their_own_places_from_either_vendors() {
        let here = extended_features();
        // What an Intel processor without AMX and an AMD one have, and one of neither.
        for len in [2696, 2440, 3000] {
            let mut state = vec![0; len];
            let used = 0xe7 | PKRU.1;
            state[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&u64::to_le_bytes(used));
            state[600] = 2;
            let parts = [5u32, 6, 7, 9];
            for part in parts {
                state[place(part, len).unwrap()] = part as u8;
            }
            let fitted = fit_extended(&state, 20_000);
            assert_eq!(fitted.len(), 20_000);
            assert_eq!(word(&fitted, XSTATE_BV), used & here);
            assert_eq!(fitted[600], 2);
            for part in parts.into_iter().filter(|part| here >> part & 1 != 0) {
                assert_eq!(fitted[place_here(part).1], part as u8, "{part} of {len}");
            }
            let same = fit_extended(&state, len);
            assert_eq!(
                same[XSTATE_BV + 8..],
                state[XSTATE_BV + 8..],
                "of this machine"
            );
        }
    }
}

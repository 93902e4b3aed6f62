//! Threads that keep known values in vector, mask and x87 registers, where no memory copy can save them.

use super::rng::mix;

/// Which vector registers this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// ymm0–ymm15.
    Avx2,
    /// zmm0–zmm31 and the mask registers k1–k7.
    Avx512,
}

/// One thread's register file in memory: what it loads, and what it finds afterwards.
#[repr(C, align(64))]
#[derive(Clone)]
struct Registers {
    vectors: [[u64; 8]; 32],
    masks: [u64; 8],
    mxcsr: u32,
    control: u16,
    pad: u16,
    x87: [f64; 2],
}

// SSE: all exceptions masked, round toward zero, flush to zero, denormals are zero.
const MXCSR: u32 = 0xffc0;
// x87: all exceptions masked, round toward zero, double precision.
const CONTROL: u16 = 0x0e7f;

#[cfg(target_arch = "x86_64")]
mod asm {
    use super::Registers;

    // Both functions: rdi = registers to load, rsi = where to store them, rdx = iterations (not 0). The loop
    // adds the last vector register to all the others. MXCSR and the x87 control word belong to the caller in
    // the System V ABI, so they are put back; everything else touched is the callee's to spend.
    core::arch::global_asm!(
        ".macro ksnap_victim_enter",
        "sub rsp, 24",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 8]",
        "ldmxcsr [rdi + 2112]",
        "fldcw [rdi + 2116]",
        "fld qword ptr [rdi + 2120]",
        "fld qword ptr [rdi + 2128]",
        ".endm",
        ".macro ksnap_victim_leave",
        "stmxcsr [rsi + 2112]",
        "fnstcw [rsi + 2116]",
        "fstp qword ptr [rsi + 2128]",
        "fstp qword ptr [rsi + 2120]",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 8]",
        "add rsp, 24",
        "vzeroupper",
        "ret",
        ".endm",
        ".globl ksnap_victim_spin_avx2",
        "ksnap_victim_spin_avx2:",
        "ksnap_victim_enter",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu ymm\\n, [rdi + 64 * \\n]",
        ".endr",
        "2:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14",
        "vpaddq ymm\\n, ymm\\n, ymm15",
        ".endr",
        "dec rdx",
        "jnz 2b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu [rsi + 64 * \\n], ymm\\n",
        ".endr",
        "ksnap_victim_leave",
        ".globl ksnap_victim_spin_avx512",
        "ksnap_victim_spin_avx512:",
        "ksnap_victim_enter",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 zmm\\n, [rdi + 64 * \\n]",
        ".endr",
        ".irp n,1,2,3,4,5,6,7",
        "kmovq k\\n, [rdi + 2048 + 8 * \\n]",
        ".endr",
        "2:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "vpaddq zmm\\n, zmm\\n, zmm31",
        ".endr",
        "dec rdx",
        "jnz 2b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 [rsi + 64 * \\n], zmm\\n",
        ".endr",
        ".irp n,1,2,3,4,5,6,7",
        "kmovq [rsi + 2048 + 8 * \\n], k\\n",
        ".endr",
        "ksnap_victim_leave",
    );

    unsafe extern "C" {
        pub safe fn ksnap_victim_spin_avx2(
            load: &Registers,
            store: &mut Registers,
            iterations: u64,
        );
        pub safe fn ksnap_victim_spin_avx512(
            load: &Registers,
            store: &mut Registers,
            iterations: u64,
        );
    }
}

/// The widest vector registers here, or none.
pub fn available() -> Option<Width> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            return Some(Width::Avx512);
        }
        if is_x86_feature_detected!("avx2") {
            return Some(Width::Avx2);
        }
    }
    None
}

/// Holds values that follow from a seed in registers, and finds out whether they were kept.
pub struct Spinner {
    width: Width,
    seed: u64,
    load: Box<Registers>,
    found: Box<Registers>,
}

impl Spinner {
    /// The values follow from the seed alone. `width` must not exceed what [`available`] says.
    pub fn new(seed: u64, width: Width) -> Self {
        let vectors =
            std::array::from_fn(|register| std::array::from_fn(|lane| word(seed, register, lane)));
        let masks = std::array::from_fn(|mask| word(seed, 100, mask));
        let load = Registers {
            vectors,
            masks,
            mxcsr: MXCSR,
            control: CONTROL,
            pad: 0,
            x87: floats(seed),
        };
        Self {
            width,
            seed,
            found: Box::new(load.clone()),
            load: Box::new(load),
        }
    }

    /// Spins so many times with everything in registers, then compares each of them with what it must be.
    pub fn round(&mut self, iterations: u64) -> Result<(), String> {
        self.spin(iterations);
        let (registers, lanes) = match self.width {
            Width::Avx2 => (16, 4),
            Width::Avx512 => (32, 8),
        };
        for register in 0..registers {
            for lane in 0..lanes {
                let step = match register == registers - 1 {
                    true => 0,
                    false => word(self.seed, registers - 1, lane).wrapping_mul(iterations),
                };
                let name = format_args!("vector register {register}, 64-bit lane {lane}");
                let expected = word(self.seed, register, lane).wrapping_add(step);
                compare(name, self.found.vectors[register][lane], expected)?;
            }
        }
        if self.width == Width::Avx512 {
            for mask in 1..8 {
                compare(
                    format_args!("mask register k{mask}"),
                    self.found.masks[mask],
                    word(self.seed, 100, mask),
                )?;
            }
        }
        compare(format_args!("MXCSR"), self.found.mxcsr.into(), MXCSR.into())?;
        compare(
            format_args!("x87 control word"),
            self.found.control.into(),
            CONTROL.into(),
        )?;
        for (at, float) in floats(self.seed).into_iter().enumerate() {
            compare(
                format_args!("x87 register {at}"),
                self.found.x87[at].to_bits(),
                float.to_bits(),
            )?;
        }
        Ok(())
    }

    #[cfg(target_arch = "x86_64")]
    fn spin(&mut self, iterations: u64) {
        match self.width {
            Width::Avx2 => asm::ksnap_victim_spin_avx2(&self.load, &mut self.found, iterations),
            Width::Avx512 => asm::ksnap_victim_spin_avx512(&self.load, &mut self.found, iterations),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn spin(&mut self, _iterations: u64) {
        unreachable!("`available` is none on this architecture, so there is no spinner");
    }

    /// The bytes that are loaded into the first vector register, for a test to damage.
    pub fn loaded(&self) -> *const u8 {
        self.load.vectors.as_ptr().cast()
    }
}

fn word(seed: u64, register: usize, lane: usize) -> u64 {
    mix(seed ^ mix(((register as u64) << 8) | lane as u64))
}

fn floats(seed: u64) -> [f64; 2] {
    [(seed >> 12) as f64, -((seed >> 24) as f64) / 3.0]
}

fn compare(what: std::fmt::Arguments<'_>, found: u64, expected: u64) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!(
            "{what} holds {found:#018x} instead of {expected:#018x}"
        )),
    }
}

//! Durations and sizes as people write them.

use std::time::Duration;

/// Splits `1.5s` into its number and its unit.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let at = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number
        .parse()
        .map_err(|_| format!("'{text}' does not begin with a number"))?;
    Ok((number, unit.trim_start()))
}

/// Parses `100ms`, `2s`, `1m`, `1.5h`, `250us`; more than nothing, and less than 100 years.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        "" => return Err(format!("'{text}' has no unit: us, ms, s, m, h or d")),
        other => return Err(format!("no unit of time '{other}': us, ms, s, m, h or d")),
    };
    let seconds = number * seconds;
    if seconds > 100.0 * 365.0 * 86400.0 {
        return Err(format!("'{text}' is longer than 100 years"));
    }
    let duration = Duration::from_secs_f64(seconds);
    if duration.is_zero() {
        return Err("it must be longer than nothing".into());
    }
    Ok(duration)
}

/// As [`duration`], or 0.
#[cfg(feature = "object-storage")]
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "0" | "0s" => Ok(Duration::ZERO),
        text => duration(text),
    }
}

/// As [`size`], or 0 for none.
pub fn size_or_none(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => size(text),
    }
}

/// Smallest copy buffer that is worth having.
const LEAST: u64 = 1 << 20;

/// Parses `64M`, `1.5G`, `67108864`, in units of 1024; at least 1 MiB.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        other => return Err(format!("no unit of size '{other}': K, M, G or T")),
    };
    let bytes = number * (1u64 << shift) as f64;
    if bytes >= (1u64 << 53) as f64 {
        return Err(format!("'{text}' is more than any machine has"));
    }
    match bytes as u64 {
        bytes if bytes < LEAST => Err("it must be 1M or more".into()),
        bytes => Ok(bytes),
    }
}

/// The size of a store in memory; `None` where it is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSize(pub Option<u64>);

/// Least room in memory that a watch can do something with.
const LEAST_RAM: u64 = 16 << 20;

/// Parses a size of at least 16 MiB, or nothing.
pub fn ram(text: &str) -> Result<RamSize, String> {
    match text {
        "" => Ok(RamSize(None)),
        text => match size(text)? {
            size if size < LEAST_RAM => Err("it must be 16M or more".into()),
            size => Ok(RamSize(Some(size))),
        },
    }
}

/// A share in thousandths, or `None` for no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(pub Option<u32>);

/// Parses `10%`, `2.5%` or `off`.
pub fn share(text: &str) -> Result<Share, String> {
    if text.trim() == "off" {
        return Ok(Share(None));
    }
    let (number, unit) = split(text).map_err(|why| format!("{why}, and is not 'off'"))?;
    match (unit, (number * 10.0).round() as u32) {
        ("%", permille @ 1..=1000) => Ok(Share(Some(permille))),
        ("%", _) => Err("it must be from 0.1% to 100%, or off".into()),
        _ => Err(format!("'{text}' is no share: 10%, or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages_or_off() {
        assert_eq!(share("10%"), Ok(Share(Some(100))));
        assert_eq!(share("2.5 %"), Ok(Share(Some(25))));
        assert_eq!(share("off"), Ok(Share(None)));
        for wrong in ["", "10", "0%", "101%", "-1%", "on", "5ms"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, ms) in [
            ("100ms", 100),
            ("2s", 2000),
            ("1m", 60_000),
            ("1.5s", 1500),
            ("1h", 3_600_000),
            ("2 min", 120_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        for bad in [
            "", "s", "5", "-1s", "0s", "0ms", "1e3s", "1..2s", "3 weeks", "9999999d", "ms5",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_count_in_units_of_1024() {
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("1.5G"), Ok(3 << 29));
        assert_eq!(size("2097152"), Ok(2 << 20));
        assert_eq!(size("2048K"), Ok(2 << 20));
        assert_eq!(size("1 MiB"), Ok(1 << 20));
        for bad in ["", "M", "-5M", "5X", "1K", "0", "99999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}

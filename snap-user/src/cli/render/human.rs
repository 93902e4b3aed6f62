//! Sizes, times and names as people read them.

use std::time::Duration;

/// Bytes in units of 1024, three digits or so: `4.0 KiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value < 100.0 {
        true => format!("{value:.1} {}", UNITS[unit]),
        false => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Nanoseconds in the unit that fits: `850 ns`, `12.3 µs`, `1.23 ms`, `4.5 s`.
pub fn nanos(ns: u64) -> String {
    let value = ns as f64;
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (value / 1e3, "µs"),
        1_000_000..1_000_000_000 => (value / 1e6, "ms"),
        _ => return duration(Duration::from_nanos(ns)),
    };
    match value {
        ..9.995 => format!("{value:.2} {unit}"),
        ..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// A duration of seconds or more: `4.5 s`, `2 min 05 s`, `3 h 12 min`, `2 d 4 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// `1 page`, `2 pages`.
pub fn count(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    }
}

/// A number of processes.
pub fn processes(number: usize) -> String {
    match number {
        1 => "1 process".to_owned(),
        n => format!("{n} processes"),
    }
}

/// Text with its control characters made visible.
pub fn clean(text: &str) -> String {
    if !text.contains(|c: char| c.is_control()) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| match c {
            c if c.is_control() && (c as u32) < 0x100 => match c {
                '\n' | '\t' | '\r' => c.escape_default().collect::<Vec<_>>(),
                c => format!("\\x{:02x}", c as u32).chars().collect(),
            },
            c => vec![c],
        })
        .collect()
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years begin in March here, so that the leap day is the last of its year; 400 years have 146,097 days.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// Nanoseconds since 1970 as UTC: `2026-03-01 12:34:56.789`.
pub fn utc(ns: u64) -> String {
    let seconds = (ns / 1_000_000_000) as i64;
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        second / 3600,
        second / 60 % 60,
        second % 60,
        ns / 1_000_000 % 1_000
    )
}

/// How long ago a time is: `3.2 s ago`.
pub fn ago(ns: u64, now: std::time::SystemTime) -> String {
    let then = std::time::UNIX_EPOCH + Duration::from_nanos(ns);
    match now.duration_since(then) {
        Ok(since) => format!("{} ago", duration(since)),
        Err(_) => format!("{} UTC", utc(ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_that_fits() {
        for (bytes_, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.0 KiB"),
            (150 << 10, "150 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(bytes_), text);
        }
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_234, "1.23 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (1_500_000, "1.50 ms"),
            (123_456_789, "123 ms"),
            (4_500_000_000, "4.5 s"),
            (125_000_000_000, "2 min 05 s"),
            (11_520_000_000_000, "3 h 12 min"),
            (187_200_000_000_000, "2 d 4 h"),
        ] {
            assert_eq!(nanos(ns), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400, "2000-02-29 00:00:00.000"),
            (951_868_799, "2000-02-29 23:59:59.000"),
            (1_709_164_800, "2024-02-29 00:00:00.000"),
            (1_735_689_599, "2024-12-31 23:59:59.000"),
            (4_107_542_400, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000), text);
        }
        assert!(utc(1_234_567_890_123_456_789).ends_with("23:31:30.123"));
    }

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(clean("ok é"), "ok é");
        assert_eq!(clean("a\tb\x07\u{9b}1m"), "a\\tb\\x07\\x9b1m");
    }

    #[test]
    fn the_past_is_ago_and_the_future_a_date() {
        let now = std::time::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(ago(95_000_000_000, now), "5.0 s ago");
        assert_eq!(ago(200_000_000_000, now), "1970-01-01 00:03:20.000 UTC");
    }
}

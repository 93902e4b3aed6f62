//! Decoding, by values made by hand.

use super::*;

#[test]
fn a_periodic_timer_whose_signal_waits_goes_on_in_its_rhythm() {
    assert_eq!(wait(true, false, 130, 0, 100), 30);
    assert_eq!(wait(true, false, 90, 0, 100), 1, "about to expire");
    assert_eq!(wait(false, false, 90, 0, 100), 0, "over");
    assert_eq!(wait(false, false, 90, 40, 100), 30);
    assert_eq!(wait(false, false, 90, 4, 100), 2);
    assert_eq!(wait(false, true, 130, 40, 100), 30, "sends nothing");
    assert_eq!(wait(false, true, 90, 0, 100), 0);
}

#[test]
fn speculation_in_the_terms_of_prctl() {
    assert_eq!(speculation(0, PFA_STORE_BYPASS), 2);
    assert_eq!(speculation(1 << 3, PFA_STORE_BYPASS), 4);
    assert_eq!(speculation(0b11 << 3, PFA_STORE_BYPASS), 8);
    assert_eq!(speculation(1 << 7, PFA_STORE_BYPASS), 16);
    assert_eq!(speculation(1 << 7, PFA_INDIRECT_BRANCH), 2);
    assert_eq!(speculation(0b11 << 5, PFA_INDIRECT_BRANCH), 8);
}

#[test]
fn a_stream_cut_anywhere_is_an_error_not_a_panic() {
    let mut stream = Vec::new();
    for word in [
        RecordKind::Process as u32,
        size_of::<ProcessRecord>() as u32,
        7,
        1,
    ] {
        stream.extend(word.to_ne_bytes());
    }
    stream.resize(stream.len() + size_of::<ProcessRecord>(), 0);
    let clocks = Clocks {
        real: 0,
        monotonic: 0,
        boot: 0,
        tai: 0,
    };
    let whole = decode(&stream, &clocks, Bits::default()).unwrap();
    assert_eq!(whole.process.signals.unwrap().len(), 64);
    for len in 0..stream.len() {
        assert!(decode(&stream[..len], &clocks, Bits::default()).is_err());
    }
    stream[0] = 77;
    assert!(decode(&stream, &clocks, Bits::default()).is_err());
}

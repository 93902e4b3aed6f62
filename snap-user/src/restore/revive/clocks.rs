//! Clocks that count from the machine's start, for a process that knows what they said when it was captured. Pure.

use crate::model::{Clocks, ProcessState};

/// Offsets of the time namespace in which the clocks of a process go on: of monotonic and boot time, in nanoseconds.
///
/// Since the same start of the machine they have gone on by themselves. After another one, or where the machine itself was set
/// back to what it was before, they go on from where they were: they must never go back, and what the process waits for is as
/// far away as it was. `host` is how they are without a namespace, `own` is what ksnap's has; `None` where that is the
/// right one.
pub fn time_offsets(state: &ProcessState, host: &Clocks, own: [i64; 2]) -> Option<[i64; 2]> {
    let then = state.clocks?;
    let had = state.attributes.time_offsets.unwrap_or_default();
    let is_later = then.monotonic_ns <= host.monotonic_ns.saturating_add(had[0]);
    let offsets = match then.boot == host.boot && is_later {
        true => had,
        false => [
            then.monotonic_ns.saturating_sub(host.monotonic_ns),
            then.boottime_ns.saturating_sub(host.boottime_ns),
        ],
    };
    (offsets != own).then_some(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProcessAttributes;

    fn clocks(boot: u8, at: i64) -> Clocks {
        Clocks {
            boot: [boot; 16],
            monotonic_ns: at,
            boottime_ns: at + 1000,
        }
    }

    fn captured(clocks: Option<Clocks>, time_offsets: Option<[i64; 2]>) -> ProcessState {
        ProcessState {
            clocks,
            attributes: ProcessAttributes {
                time_offsets,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn since_the_same_start_the_namespace_is_what_it_was() {
        let here = clocks(1, 500);
        let state = |offsets| captured(Some(clocks(1, 200)), offsets);
        assert_eq!(time_offsets(&state(None), &here, [0, 0]), None);
        assert_eq!(time_offsets(&state(Some([0, 0])), &here, [0, 0]), None);
        let moved = Some([7, 8]);
        assert_eq!(time_offsets(&state(moved), &here, [0, 0]), moved);
        assert_eq!(time_offsets(&state(moved), &here, [7, 8]), None);
        // ksnap is in one, and the process was not.
        assert_eq!(time_offsets(&state(None), &here, [7, 8]), Some([0, 0]));
    }

    #[test]
    fn a_machine_that_was_set_back_has_them_go_on_as_well() {
        let state = captured(Some(clocks(1, 800)), None);
        assert_eq!(
            time_offsets(&state, &clocks(1, 500), [0, 0]),
            Some([300, 300])
        );
    }

    #[test]
    fn after_another_start_they_go_on_from_where_they_were() {
        let state = captured(Some(clocks(1, 200)), Some([7, 8]));
        let early = time_offsets(&state, &clocks(2, 50), [0, 0]);
        assert_eq!(early, Some([150, 150]));
        let late = time_offsets(&state, &clocks(2, 5000), [0, 0]);
        assert_eq!(late, Some([-4800, -4800]));
    }

    #[test]
    fn what_an_older_ksnap_has_stored_is_left_alone() {
        assert_eq!(
            time_offsets(&captured(None, Some([7, 8])), &clocks(2, 5), [0, 0]),
            None
        );
    }
}

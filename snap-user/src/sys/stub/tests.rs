//! Stubs from their start to their end.

use super::*;
use crate::sys::proc;

fn is_root() -> bool {
    // SAFETY: a system call without arguments.
    unsafe { libc::geteuid() == 0 }
}

/// Tried out with an id that is taken: whoever may not choose is told that first.
fn may_choose_ids() -> bool {
    let birth = Birth {
        pid: Some(std::process::id() as i32),
        ..Birth::default()
    };
    Stub::start(birth, &[], &[]).is_err_and(|e| e.errno() == Some(libc::EEXIST))
}

#[test]
fn a_stub_is_empty_runs_calls_and_is_gone_when_dropped() {
    let avoid = [PageRange::new(0x40_0000, 0x80_0000)];
    let mut stub = Stub::start(Birth::default(), &avoid, &[]).unwrap();
    let pid = stub.pid();
    let maps = proc::maps(pid).unwrap();
    assert!(maps.iter().all(|v| v.range.intersect(&avoid[0]).is_none()));
    let own = stub.area.range();
    for vma in &maps {
        assert!(
            own.intersect(&vma.range).is_some() || vma.is_special(),
            "{vma:?}"
        );
    }
    assert!(
        stub.kernel_mappings()
            .iter()
            .any(|(name, _)| name == "vdso")
    );
    let getpid = StubCall::new("getpid", "itself", libc::SYS_getpid, [0; 6]);
    let bad = StubCall::new(
        "close",
        "no descriptor",
        libc::SYS_close,
        [u64::from(u32::MAX), 0, 0, 0, 0, 0],
    );
    let results = stub
        .run(&[getpid.clone(), bad.clone().or_not(), getpid])
        .unwrap();
    assert_eq!(
        results,
        [i64::from(pid), -i64::from(libc::EBADF), i64::from(pid)]
    );
    let error = stub.run(&[bad]).unwrap_err();
    assert_eq!((error.call, error.errno()), ("close", Some(libc::EBADF)));
    drop(stub);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn threads_are_made_and_run_calls_of_their_own() {
    let mut stub = Stub::start(Birth::default(), &[], &[]).unwrap();
    stub.make_threads(super::super::THREAD_FLAGS, &[None; 300])
        .unwrap();
    assert_eq!(stub.threads().len(), 301);
    let gettid = StubCall::new("gettid", "itself", libc::SYS_gettid, [0; 6]);
    for n in [0, 1, 300] {
        let got = stub.run_by(n, std::slice::from_ref(&gettid)).unwrap();
        assert_eq!(got, [i64::from(stub.threads()[n].own)]);
    }
    let pid = stub.pid();
    drop(stub);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn an_id_that_a_short_process_has_is_waited_for() {
    if !is_root() || !may_choose_ids() {
        return crate::skip::without_root("the right to choose ids");
    }
    let mut stub = Stub::start(Birth::default(), &[], &[]).unwrap();
    let mut sleeper = std::process::Command::new("sleep")
        .arg("0.2")
        .spawn()
        .unwrap();
    let taken = sleeper.id() as i32;
    let reaper = std::thread::spawn(move || sleeper.wait());
    let ids = [None, Some(taken), None];
    // However long the other one takes to begin.
    let patience = std::time::Duration::from_secs(60);
    stub.make_threads_within(super::super::THREAD_FLAGS, &ids, patience)
        .unwrap();
    assert!(reaper.join().unwrap().unwrap().success());
    let gettid = StubCall::new("gettid", "itself", libc::SYS_gettid, [0; 6]);
    for n in 0..4 {
        let got = stub.run_by(n, std::slice::from_ref(&gettid)).unwrap();
        assert_eq!(got, [i64::from(stub.threads()[n].own)]);
    }
    assert_eq!(stub.threads()[2].own, taken);
    // One that stays taken is an error.
    let own = Some(std::process::id() as i32);
    let error = stub.make_threads(super::super::THREAD_FLAGS, &[own]);
    assert_eq!(error.unwrap_err().errno(), Some(libc::EEXIST));
}

#[test]
fn a_namespace_gives_the_process_the_id_it_asks_for() {
    if !is_root() {
        return crate::skip::without_root("the right to make a PID namespace");
    }
    let birth = Birth {
        pid: Some(4711),
        namespace: true,
        network: true,
        ..Birth::default()
    };
    let mut stub = Stub::start(birth, &[], &[]).unwrap();
    stub.bring_up_loopback().unwrap();
    assert_eq!(stub.threads()[0].own, 4711);
    let getpid = StubCall::new("getpid", "itself", libc::SYS_getpid, [0; 6]);
    assert_eq!(stub.run(&[getpid]).unwrap(), [4711]);
    let (pid, init) = (stub.pid(), stub.init().unwrap());
    drop(stub);
    for gone in [pid, init] {
        assert!(!std::path::Path::new(&format!("/proc/{gone}")).exists());
    }
}

/// As an ordinary user makes one, who has no right to choose ids.
#[test]
fn in_a_user_namespace_the_process_has_every_right_and_its_user() {
    let birth = Birth {
        pid: Some(4711),
        namespace: true,
        users: true,
        ..Birth::default()
    };
    let mut stub = match Stub::start(birth, &[], &[]) {
        Err(e) if e.is_denied() || e.errno() == Some(libc::ENOSPC) => {
            return crate::skip::skip("user namespaces", "raise user.max_user_namespaces (sysctl)");
        }
        started => started.unwrap(),
    };
    assert_eq!(stub.threads()[0].own, 4711);
    let call = |name, nr| StubCall::new(name, "itself", nr, [0; 6]);
    let ids = [
        call("geteuid", libc::SYS_geteuid),
        call("getegid", libc::SYS_getegid),
    ];
    let own = [
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    ];
    assert_eq!(stub.run(&ids).unwrap(), own.map(i64::from));
    let credentials = proc::task_status(stub.pid(), stub.pid())
        .unwrap()
        .credentials;
    let all = crate::sys::all_capabilities().unwrap();
    assert_eq!(credentials.capabilities, [0, all, all, all, 0]);
}

#[test]
fn processes_of_a_namespace_are_gone_when_they_are_dropped_first_to_last() {
    if !is_root() {
        return crate::skip::without_root("the right to make a PID namespace");
    }
    // The tracer is the thread that would wait for ever.
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let birth = Birth {
            namespace: true,
            ..Birth::default()
        };
        let mut first = Stub::start(birth, &[], &[]).unwrap();
        let mut second = first.fork(None, true).unwrap();
        second
            .make_threads(super::super::THREAD_FLAGS, &[None; 2])
            .unwrap();
        let pids = [first.init().unwrap(), first.pid(), second.pid()];
        drop(vec![first, second]);
        done.send(pids).unwrap();
    });
    let pids = is_done
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("it waits for process 1, which waits for the second");
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}

#[test]
fn dropping_a_namespace_leaves_other_children_alone() {
    if !is_root() {
        return crate::skip::without_root("the right to make a PID namespace");
    }
    let birth = Birth {
        namespace: true,
        ..Birth::default()
    };
    if !may_choose_ids() {
        return crate::skip::without_root("the right to choose ids in this PID namespace");
    }
    let stub = Stub::start(birth, &[], &[]).unwrap();
    let ids = [stub.init().unwrap(), stub.pid()];
    // Both are gone, and waited for, before anything is dropped.
    birth::end(ids[0]);
    let mut others = ids.map(|id| {
        let birth = Birth {
            pid: Some(id),
            ..Birth::default()
        };
        Stub::start(birth, &[], &[]).unwrap()
    });
    drop(stub);
    for (other, id) in others.iter_mut().zip(ids) {
        let getpid = StubCall::new("getpid", "itself", libc::SYS_getpid, [0; 6]);
        assert_eq!(other.run(&[getpid]).unwrap(), [i64::from(id)]);
    }
}

#[test]
fn one_that_is_killed_before_it_is_let_go_is_left_to_its_parent() {
    let mut parent = Stub::start(Birth::default(), &[], &[]).unwrap();
    let mut child = parent.fork(None, true).unwrap();
    child
        .make_threads(super::super::THREAD_FLAGS, &[None; 2])
        .unwrap();
    let own = child.threads()[0].own;
    // SAFETY: a system call without pointers, on a process that this one holds.
    assert_eq!(unsafe { libc::kill(child.pid(), libc::SIGKILL) }, 0);
    child.release().unwrap();
    parent.reap(own).unwrap();
}

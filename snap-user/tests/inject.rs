//! Injected system calls: exact, and harmless when the tracer dies at any moment.

mod skip;

use snap_user::model::Vma;
use snap_user::sys::{
    Call, Freeze, Frozen, Gadgets, Guarded, Question, USERFAULTFD_FLAGS, ask, proc,
};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const TRACER: &str = "KSNAP_TEST_TRACE";
/// What all of these need, and how to get it.
const PYTHON: (&str, &str) = ("the program python3", "apt-get install python3");

/// python3 that answers each line with a sum of floating-point work, and counts what it answered.
struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    asked: u64,
}

impl Target {
    fn start() -> Option<Self> {
        let script = "import sys,math\nn=0\nfor line in sys.stdin:\n    n+=1\n    print(n, sum(math.sqrt(i) for i in range(1000)), flush=True)\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (stdin, stdout) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut target = Self {
            child,
            stdin,
            stdout,
            asked: 0,
        };
        target.ask();
        Some(target)
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn ask(&mut self) {
        self.asked += 1;
        writeln!(self.stdin, "go").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let want: f64 = (0..1000).map(|i| f64::from(i).sqrt()).sum();
        let (count, sum) = line.trim().split_once(' ').expect("an answer");
        assert_eq!(count.parse::<u64>().unwrap(), self.asked);
        assert!((sum.parse::<f64>().unwrap() - want).abs() < 1e-6, "{line}");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn prepare(pid: i32) -> (Gadgets, Vec<Vma>) {
    let vmas = proc::maps(pid).unwrap();
    (
        Gadgets::find(pid, &vmas)
            .unwrap()
            .expect("python3 has gadgets"),
        vmas,
    )
}

fn lowest_free_fd(pid: i32) -> i32 {
    let open: Vec<i32> = proc::FdTable::open(pid).unwrap().numbers().unwrap();
    (0..).find(|fd| !open.contains(fd)).unwrap()
}

fn inject_once(pid: i32, gadgets: &Gadgets, vmas: &[Vma]) {
    let frozen = Frozen::freeze(pid, Freeze::default()).unwrap();
    let fd = lowest_free_fd(pid);
    let close = Call {
        nr: libc::SYS_close,
        args: [fd as u64, 0, 0, 0, 0, 0],
    };
    let mut guarded = Guarded::new(&frozen, gadgets, vmas).unwrap();
    let open = Call {
        nr: libc::SYS_userfaultfd,
        args: [USERFAULTFD_FLAGS, 0, 0, 0, 0, 0],
    };
    assert_eq!(guarded.call(open, Some(close)).unwrap(), i64::from(fd));
    assert_eq!(guarded.call(close, None).unwrap(), 0);
    let getpid = Call {
        nr: libc::SYS_getpid,
        args: [0; 6],
    };
    assert_eq!(guarded.call(getpid, None).unwrap(), i64::from(pid));
}

/// Every descriptor and where its link points.
fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let table = proc::FdTable::open(pid).unwrap();
    let numbers = table.numbers().unwrap().into_iter();
    numbers.map(|fd| (fd, table.link(fd).unwrap())).collect()
}

/// Divided by `KSNAP_TESTS_SLOW`, where a machine takes many times as long.
fn rounds(full: u64) -> u64 {
    let slow = std::env::var("KSNAP_TESTS_SLOW").ok();
    full / slow.map_or(1, |factor| factor.parse().unwrap())
}

#[test]
fn calls_return_their_results_and_leave_no_trace() {
    let Some(mut target) = Target::start() else {
        return skip::skip(PYTHON.0, PYTHON.1);
    };
    let (gadgets, vmas) = prepare(target.pid());
    let before = descriptors(target.pid());
    for _ in 0..rounds(50) {
        inject_once(target.pid(), &gadgets, &vmas);
        target.ask();
    }
    assert_eq!(descriptors(target.pid()), before);
    assert_eq!(proc::maps(target.pid()).unwrap(), vmas);
    assert_eq!(proc::status(target.pid()).unwrap().tracer, 0);
}

/// Asks for all dispositions and a few more; gives those of SIGINT, SIGURG and the last answer.
fn ask_once(pid: i32, gadgets: &Gadgets, vmas: &[Vma]) -> Vec<Option<Vec<u8>>> {
    let frozen = Frozen::freeze(pid, Freeze::default()).unwrap();
    let mut questions: Vec<Question> = (1..=64)
        .map(|signal| Question {
            call: Call {
                nr: libc::SYS_rt_sigaction,
                args: [signal, 0, 0, 8, 0, 0],
            },
            at: 2,
            len: 32,
        })
        .collect();
    // One that fails: nothing is written.
    questions.push(Question {
        call: Call {
            nr: libc::SYS_timer_gettime,
            args: [12345, 0, 0, 0, 0, 0],
        },
        at: 1,
        len: 32,
    });
    questions.push(Question {
        call: Call {
            nr: libc::SYS_getresuid,
            args: [0; 6],
        },
        at: 0,
        len: 4,
    });
    ask(&frozen, frozen.threads()[0], gadgets, vmas, &questions).unwrap()
}

/// All of the main stack's mapping below the red zone of its stopped thread.
fn dead_stack(pid: i32, vmas: &[Vma]) -> Vec<u8> {
    let frozen = Frozen::freeze(pid, Freeze::default()).unwrap();
    let sp = snap_user::sys::ptrace::registers(frozen.threads()[0])
        .unwrap()
        .sp();
    let stack = vmas.iter().find(|v| v.range.contains(sp)).unwrap();
    let mut bytes = vec![0; (sp - 128 - stack.range.start) as usize];
    snap_user::sys::read_bytes(pid, stack.range.start, &mut bytes).unwrap();
    bytes
}

#[test]
fn many_questions_are_answered_in_one_go_and_leave_no_trace() {
    let Some(mut target) = Target::start() else {
        return skip::skip(PYTHON.0, PYTHON.1);
    };
    // Asleep in its read, behind all that it does with its stack to answer.
    let end = Instant::now() + Duration::from_secs(60);
    while proc::stat(target.pid(), None).unwrap().state != 'S' {
        assert!(Instant::now() < end, "it does not wait for a line");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (gadgets, vmas) = prepare(target.pid());
    let before = dead_stack(target.pid(), &vmas);
    for round in 0..50 {
        let answers = ask_once(target.pid(), &gadgets, &vmas);
        assert_eq!(answers.len(), 66);
        let word = |n: usize| -> u64 {
            let answer = answers[n].as_ref().unwrap();
            u64::from_ne_bytes(answer[..8].try_into().unwrap())
        };
        // Python handles SIGINT and ignores SIGPIPE.
        assert!(word(libc::SIGINT as usize - 1) > 1);
        assert_eq!(word(libc::SIGPIPE as usize - 1), 1);
        assert_eq!(word(libc::SIGURG as usize - 1), 0);
        assert_eq!(answers[64], None, "a call that fails answers nothing");
        // getresuid fails as well, having filled the first of three: the others are null.
        if round == 0 {
            assert!(
                dead_stack(target.pid(), &vmas) == before,
                "memory was changed"
            );
        }
        target.ask();
    }
    assert_eq!(proc::maps(target.pid()).unwrap(), vmas);
    let status = proc::task_status(target.pid(), target.pid()).unwrap();
    assert_eq!(status.pending, 0);
    assert_eq!(proc::status(target.pid()).unwrap().tracer, 0);
}

#[test]
fn a_tracer_killed_at_any_moment_leaves_the_target_whole() {
    if let Ok(pid) = std::env::var(TRACER) {
        let pid = pid.parse().unwrap();
        let (gadgets, vmas) = prepare(pid);
        println!("tracing");
        loop {
            inject_once(pid, &gadgets, &vmas);
            ask_once(pid, &gadgets, &vmas);
        }
    }
    let Some(mut target) = Target::start() else {
        return skip::skip(PYTHON.0, PYTHON.1);
    };
    let before = descriptors(target.pid());
    for round in 0..rounds(100) {
        let mut tracer = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "a_tracer_killed_at_any_moment_leaves_the_target_whole",
            ])
            .env(TRACER, target.pid().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(tracer.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().ends_with("tracing") {}
        std::thread::sleep(Duration::from_micros(round * 7919 % 2000));
        tracer.kill().unwrap();
        tracer.wait().unwrap();
        for _ in 0..3 {
            target.ask();
        }
        assert_eq!(descriptors(target.pid()), before, "after round {round}");
    }
}

//! What each command's help ends with: examples, and what its output and exit code mean.

/// References, in every command that takes one.
macro_rules! references {
    () => {
        "\n\nA snapshot is named by `latest`, by its tag, by the first 4 digits of its id or more, or by @N, its number in \
         the list; ~N behind it means the Nth parent: latest~2."
    };
}

pub(super) const MAIN: &str = "\
Begin with `ksnap doctor`.

Examples:
  ksnap run --every 100ms -- python3 job.py     start a program under snapshots
  ksnap watch $(pidof redis-server)             or snapshot one that runs already
  ksnap log                                     see what there is
  ksnap rollback $(pidof redis-server) latest~5 go back

Exit codes: 0 done; 1 failed; 2 usage; 3 captured, but something could not be saved; 10 no store; \
11 store locked; 12 kernel feature missing; 13 permission, or sealed and the key is missing or another one; 14 target vanished; 15 corrupt; 130 interrupted.

Data goes to standard output, everything else to standard error.";

pub(super) const RUN: &str = "\
Snapshots are of the process that the command starts as, with all of its threads. Processes that it starts in \
turn are not followed without --tree.

The command keeps the terminal, and ksnap ends with its exit status (128 and the signal's number if a signal \
ended it). When the snapshots end before the command, or it cannot be snapshotted, which is said on standard error, it \
runs on, and ksnap waits for it; SIGTERM then ends ksnap alone. Of a command that ends within milliseconds there may be \
no snapshot. When --audit finds differences and the command ends with 0, ksnap ends with 1.

Examples:
  ksnap run -- ./server --port 8080
  ksnap run --every 100ms --for 1m -- python3 job.py";

pub(super) const WATCH: &str = "\
Ctrl-C ends the watching, not the processes. While it goes on, `ksnap snap` and `ksnap rollback` on one of \
them go through it: --audit and --files are added to how it takes snapshots, what else it was started with stays.

Each process is watched for itself, with all of its threads: they are stopped at different moments, and one \
that ends or cannot be watched does not end the others. Its children are not followed: name them as well, or take \
each with all of its descendants (--tree). \
When one of several fails, the exit code is 3, or that of all where all failed alike. Of --memory each has an \
equal part, of at least 4M, and of --mirror too.

Examples:
  ksnap watch 1234
  ksnap watch 1234 --every 100ms --count 50
  ksnap watch $(pidof nginx)
  ksnap watch 1234 --every 50ms --ram=4G        in memory: nothing is written to a disk before `ksnap flush`
  ksnap watch 1234 --encrypt-to age1…           sealed: only the holder of the key can read it (--identity)
  ksnap watch 1234 --json | jq 'select(.event == \"taken\") | .costs.phases.stop_ns'";

pub(super) const SNAP: &str = "\
With --tree, the process and all of its descendants are stopped, captured and let go together: each is a snapshot \
in a session of its own, and a record makes them one, which carries the id of the first. It is there when all of \
them are stored, or not at all. `restore` and `fork` of that id, or of `latest`, bring all of them back.

With --kill --tcp, a process named ksnap-tcp holds its TCP connections, silent, until `ksnap restore --tcp` goes on \
with them; killing it gives them up. With --tree it holds those of all of its processes.

Examples:
  ksnap snap 1234
  ksnap snap 1234 --audit --json
  ksnap snap 1234 --encrypt-to team.keys        sealed, for each of the keys in a file
  ksnap snap $(cat /run/nginx.pid) --tree --kill
  ksnap snap 1234 --kill --tcp && ksnap restore latest --tcp";

pub(super) const INSPECT: &str = "\
Stops the process for about a millisecond to look at it; nothing is stored. For each descriptor: whole, partly or \
not, and why. The exit code is 3 if a snapshot could not save something at all.

Examples:
  ksnap inspect 1234
  ksnap inspect 1234 --tree
  ksnap inspect 1234 --json | jq -r '.descriptors[] | select(.verdict != \"whole\") | .why'";

pub(super) const LOG: &str = "\
Columns: number in its session, id, kind, time (UTC), process, how long it was stopped, pages stored, bytes \
stored, and for a snapshot that follows another than the one before it (after a rollback), which.

What is sealed is left out where --identity names no key for it; how much that is, is said on standard error.

With --json: one object a line.

Examples:
  ksnap log -n 20
  ksnap log --graph
  ksnap log --pid 1234 --json | jq -r .id";

pub(super) const SHOW: &str = concat!(
    "\
Examples:
  ksnap show
  ksnap show latest~3
  ksnap show 3f9a --json | jq .costs.phases
  ksnap show --store            what the store takes, and how quickly it takes more
  ksnap show --store --ram      the one in memory, and how long a flush would take",
    references!()
);

pub(super) const FLUSH: &str = "\
For what `run`, `watch` and `snap` with --ram have put into memory. Snapshots keep their ids; those that the store on \
the disk has, or has removed by its own rules, are not written again. The process with the newest snapshot comes first, \
and of its snapshots those that lead to the newest one. Before it begins, it says how long it will take, by a measurement \
of 0.3 s. A flush that is killed or loses power leaves whole snapshots on the disk, and the next one goes on from there. \
It needs no watcher, and does not disturb one. What is sealed (--encrypt-to) needs --identity, and stays sealed for the same keys; a watch that began it \
needs none.

A watch with --ram does the same before it ends when it gets SIGTERM or SIGPWR, not on Ctrl-C. docs/memory.md has the lines \
for a UPS.

The exit code is 3 when something could not be written; what and why is on standard error.

Examples:
  ksnap flush --dry-run
  ksnap flush --to /mnt/backup/ksnap
  ksnap log --ram && ksnap flush && ksnap log";

pub(super) const DIFF: &str = concat!(
    "\
Examples:
  ksnap diff latest~ latest
  ksnap diff 3f9a 41c2 --json | jq .pages",
    references!()
);

pub(super) const VERIFY: &str = concat!(
    "\
Every header, index and page is read and compared with its checksum. Ends with exit code 15 when something \
is damaged. Of what is sealed only lengths are checked where --identity names no key for it, which is said on standard error.

Examples:
  ksnap verify
  ksnap verify latest",
    references!()
);

pub(super) const TAG: &str = concat!(
    "\
A tagged snapshot is not removed by any rule: not by `prune`, not by `squash`, not by the rules of `run` and `watch`.

Examples:
  ksnap tag before-upgrade
  ksnap tag good @12
  ksnap rollback 1234 good
  ksnap tag
  ksnap tag -d good",
    references!()
);

pub(super) const PRUNE: &str = "\
What any of the two --keep rules keeps is kept; so are tagged snapshots and, while a process is being watched, its \
newest one. What kept snapshots need of those that go is merged first, so that they stay whole; a crash at any moment \
leaves all of them or only what is kept. A session whose process is being watched is pruned by its watcher. Without a \
rule nothing goes but what an interrupted prune has left behind. Asks first; without a terminal, -y is needed. While a \
tag is damaged, or of before tags had checksums and names nothing, nothing goes.

Beside snapshots, a prune without --pid removes the flat images that restores were made from (a cache of at most 8 GiB) \
and that nobody uses, and pages that broken-off transfers left more than 7 days ago. --max-size counts neither.

What is sealed (--encrypt-to) is left alone where --identity names no key for it, which is said; a watcher has the key of what \
it takes, and keeps to its own rules.

With --bucket it is about what `ksnap push` has put into object storage. What no snapshot there needs any more is first \
marked, and deleted by a prune that comes at least --grace later: so it is never taken from under a push. \
Run it regularly, from anywhere.

Examples:
  ksnap prune --keep-last 100 --dry-run
  ksnap prune --keep-within 7d --max-size 4G -y
  ksnap prune --bucket s3://snapshots/fleet --keep-within 30d -y";

pub(super) const SQUASH: &str = concat!(
    "\
B stays as it is, and holds what changed since A. What lies behind a pruned snapshot is not \
reached. Tagged snapshots in between are an error. Asks first; without a terminal, -y is needed.

Examples:
  ksnap squash @10..@20
  ksnap squash ..latest~100 -y",
    references!()
);

pub(super) const EXPORT: &str = concat!(
    "\
The core has all threads with their registers, and the memory that the snapshot has: heap, stacks, globals, shared \
memory. Code and other unchanged content of mapped files is in those files, which debuggers find by the \
build id; so is what the program marked with MADV_DONTDUMP left out. Pages of zeroes are holes in the file. The core of a \
sealed snapshot is plain.

Examples:
  ksnap export latest --core core.1234
  gdb /usr/bin/redis-server core.1234 -ex 'thread apply all bt'",
    references!()
);

pub(super) const GDB: &str = concat!(
    "\
Writes a core file without a name to the folder for temporary files (TMPDIR), for a sealed snapshot to memory, and starts \
gdb on it; nothing is left when gdb ends.

Examples:
  ksnap gdb
  ksnap gdb latest~3 -- -batch -ex 'thread apply all bt'",
    references!()
);

pub(super) const RESTORE: &str = concat!(
    "\
The process goes on at the instruction at which it was captured, with its memory, threads and open files. \
What cannot be brought back is refused before anything is started; what merely differs is named on standard \
error, and the exit code is 3 then. If ksnap is killed meanwhile, either the whole process runs or nothing of \
it is left.

The standard streams, where they were a terminal or a pipe, become those of ksnap. With --wait standard output has \
only what the program writes; what ksnap says of it is on standard error.

With --watch it is under snapshots from then on, as with `ksnap watch`: deltas of the same session, the first of \
which follows REF.

Examples:
  ksnap snap 1234 --kill && ksnap restore latest
  ksnap restore @12 --pids namespace --wait
  ksnap restore @12 --watch --every 100ms --keep 60s",
    references!()
);

pub(super) const FORK: &str = concat!(
    "\
Each copy sees the ids that it had: its PID namespace has a small process 1 of ksnap's, which ends with it.

Examples:
  ksnap fork latest -n 10
  ksnap fork @3 --json | jq .pid",
    references!()
);

pub(super) const CLONE: &str = concat!(
    "\
A number is a process if one has that id here, else a snapshot. Of a running process snapshots are sent while it runs, \
each with what was written since the one before; then it stands still for the last one, and goes on there. Whatever \
happens, it runs on here unless it runs there: without --move it does so in any case. Pages that the other machine \
has already are not sent, so an attempt that was cut off goes on where it ended. The snapshots stay in both stores.

A snapshot that is sealed here (--encrypt-to, --identity) is sent over TLS, and is sealed there for the keys that its server was \
started with, if any.

Both machines need each other's key (`ksnap key --help`), the same version of ksnap, the program's files at the same \
paths, and the other one a processor that has all that this one has. What differs there is named on \
standard error, and the exit code is 3 then.

Examples:
  ksnap clone $(pidof redis-server) other --move
  ksnap clone $(pidof redis-server) other --move --lazy     runs there at once; its memory follows
  ksnap clone latest other:5762 --pids namespace
  ksnap clone before-upgrade other --no-restore",
    references!()
);

pub(super) const SERVE: &str = "\
Only machines whose key is trusted get an answer (`ksnap key --help`). What is brought back runs as the user of this \
program, with its standard streams in place of a terminal's or a pipe's. It stays when the serving ends, by Ctrl-C or SIGTERM.

With --json: one object a line, as it happens.

Examples:
  ksnap serve
  ksnap serve --listen 10.0.0.2:5762 --store /srv/ksnap
  ksnap serve --encrypt-to age1…                what comes is sealed; pages wait in memory until it is whole";

pub(super) const KEY: &str = "\
Each user has a pair of keys. The private one stays in the file `key`, for its owner alone; the public one is given to \
the other machine by a way that can be trusted, and has to be trusted there, and the other way round. Both files are in \
KSNAP_CONFIG, else /etc/ksnap for root and ~/.config/ksnap for others.

Whoever is trusted can have any program run here as the user of `ksnap serve`, and is sent what is cloned there.

Examples:
  ksnap key show
  ksnap key trust ed25519:8a88…e2 --name other
  ksnap key list
  ksnap key forget other";

#[cfg(feature = "object-storage")]
pub(super) const PUSH: &str = concat!(
    "\
What arrives there is the snapshot as a whole: it needs no other one, and no store. Of a tree (`ksnap snap --tree`) it is \
all of its processes, named by the first. Pages are sent once, whatever the \
number of snapshots and machines that have them; only those are sent that are not there. A push that was cut off goes \
on where it ended, and until it is done nothing of the snapshot is there. Any number of machines may push to one place \
at the same time.

What is sealed is sealed there too, for the same keys, and takes --identity; --encrypt-to names others, and seals what is \
plain here. Then nothing but sizes and times, and which snapshots are of one session, can be read there, and listing and \
pruning need no key. Pages that are there are found, and not sent again, where --identity names a key that belongs to one \
of those that it is sealed for. What is plain is pushed in plain: whoever may read the place may read it.

Keys come from the environment, as the services' own tools read them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, \
AWS_REGION and AWS_ENDPOINT_URL for s3; GOOGLE_APPLICATION_CREDENTIALS for gs; AZURE_STORAGE_ACCOUNT_NAME and \
AZURE_STORAGE_ACCOUNT_KEY for az. docs/bucket.md has more of them, and what is written there.

Examples:
  ksnap push latest s3://snapshots/fleet
  ksnap push before-upgrade gs://snapshots
  ksnap push latest file:///mnt/nas/snapshots
  ksnap push latest s3://snapshots/fleet --encrypt-to age1… --identity me.key
  ksnap prune --bucket s3://snapshots/fleet --keep-last 10 -y",
    references!()
);

#[cfg(feature = "object-storage")]
pub(super) const PULL: &str = "\
Without REF it is the newest snapshot or tree that is there, whoever pushed it. Of a tree all processes come, and \
`ksnap restore` brings all of them back. It becomes a snapshot of a session of its own, \
with an id of its own, or of the store nothing changes. Each page is compared with its hash. Pages that the store \
has are not fetched, and a pull that was cut off goes on where it ended. One that is in the store already is not \
pulled again. Keys of the service are those of `ksnap push`.

What is sealed there takes --identity, and is sealed here for the same keys, or for yours alone where somebody else has made \
its key there, unless --encrypt-to names others; it never becomes plain. What is sealed here and was cut off comes anew. \
Without a key --list has its size and time.

Examples:
  ksnap pull s3://snapshots/fleet --list
  ksnap pull s3://snapshots/fleet
  ksnap pull s3://snapshots/fleet 3f9a --json | jq -r .stored_id";

pub(super) const ROLLBACK: &str = concat!(
    "\
Memory, mappings, registers, signal masks and file positions go back; what the process did since is lost. \
What cannot be put back is refused before anything is touched. Asks first; without a terminal, -y is needed.

A file position goes back for everyone who shares the open file, as a process started by a shell shares the \
shell's redirected output.

With --tree, a process and its descendants go back to the moment at which they were captured together (ksnap snap \
--tree), with what is in the pipes, sockets and memory between them: all of them, or none. Descendants that came since are \
ended (SIGKILL) once nothing is refused any more. Those that have ended since are made again with their ids, as children of \
the ones that live, as ksnap restore would make them. Where that cannot be, as where another process has such an id by now, or \
where the first process of the tree has ended, nothing is done.

Examples:
  ksnap rollback 1234 latest
  ksnap rollback 1234 @12 -y
  ksnap rollback $(cat /run/nginx.pid) latest --tree",
    references!()
);

pub(super) const PROFILE: &str = "\
Where the process is being watched, the snapshots of its watcher are measured, as often as it takes them.

Examples:
  ksnap profile 1234
  ksnap profile 1234 --every 50ms --for 30s --json";

pub(super) const DOCTOR: &str = "\
Tries each thing rather than look at versions. Ends with exit code 12 when processes cannot be captured here \
at all.

Examples:
  ksnap doctor
  ksnap doctor --json | jq -r '.checks[] | select(.outcome != \"supported\") | .name'";

pub(super) const COMPLETIONS: &str = "\
Examples:
  ksnap completions bash > /etc/bash_completion.d/ksnap
  ksnap completions zsh > \"${fpath[1]}/_ksnap\"
  ksnap completions fish > ~/.config/fish/completions/ksnap.fish";

pub(super) const MAN: &str = "\
Examples:
  ksnap man | man -l -
  ksnap man rollback > ksnap-rollback.1";

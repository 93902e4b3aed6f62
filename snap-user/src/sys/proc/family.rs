//! Processes and their children.

use super::status::{processes, stat, threads};
use std::collections::HashMap;

/// The children of a process, those included that have ended and that it has not waited for. Exact while it is
/// stopped (`/proc/PID/task/TID/children` in `proc_pid_task(5)`, with `CONFIG_PROC_CHILDREN`); `None` where the kernel does
/// not tell.
fn listed_children(pid: i32) -> Option<Vec<i32>> {
    let mut children = Vec::new();
    // One that is gone has none.
    for tid in threads(pid).unwrap_or_default() {
        let path = format!("/proc/{pid}/task/{tid}/children");
        let text = std::fs::read_to_string(path).ok()?;
        children.extend(
            text.split_ascii_whitespace()
                .filter_map(|word| word.parse::<i32>().ok()),
        );
    }
    Some(children)
}

/// The children of each of `parents`.
pub fn children(parents: &[i32]) -> Vec<(i32, Vec<i32>)> {
    let mut found: Vec<(i32, Vec<i32>)> = Vec::with_capacity(parents.len());
    let mut all: Option<HashMap<i32, Vec<i32>>> = None;
    for &parent in parents {
        let own = listed_children(parent).unwrap_or_else(|| {
            let all = all.get_or_insert_with(|| {
                let mut all: HashMap<i32, Vec<i32>> = HashMap::new();
                for pid in processes() {
                    if let Ok(stat) = stat(pid, None) {
                        all.entry(stat.ppid).or_default().push(pid);
                    }
                }
                all
            });
            all.get(&parent).cloned().unwrap_or_default()
        });
        found.push((parent, own));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_also_when_it_has_ended() {
        let own = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let has = || children(&[own])[0].1.contains(&pid);
        assert!(has());
        child.kill().unwrap();
        while stat(pid, None).unwrap().state != 'Z' {
            std::thread::yield_now();
        }
        assert!(has());
        child.wait().unwrap();
        assert!(!has());
    }
}

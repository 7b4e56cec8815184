//! Who listens on a port: the sockets in `/proc/net/tcp`, then the processes that hold one of them.

use std::collections::HashSet;
use std::fs;

/// Names the process that listens on `port`, as `nginx (pid 812)`. None when there is none, or
/// when it belongs to another user and we are not root.
pub(super) fn of(port: u16) -> Option<String> {
    let mut sockets = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        if let Ok(text) = fs::read_to_string(table) {
            sockets.extend(listening(&text, port).map(|inode| format!("socket:[{inode}]")));
        }
    }
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find_map(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            files
                .flatten()
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|target| {
                    target
                        .to_str()
                        .is_some_and(|target| sockets.contains(target))
                })
                .then(|| format!("{} (pid {pid})", name(pid)))
        })
}

/// The process's own name for itself, which may hold anything.
fn name(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    let name: String = name
        .trim_end()
        .chars()
        .filter(|char| !char.is_control())
        .collect();
    if name.is_empty() {
        "a process".to_owned()
    } else {
        name
    }
}

/// The inodes of the sockets that listen on `port`, from a table as the kernel prints it.
fn listening(table: &str, port: u16) -> impl Iterator<Item = u64> + '_ {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let (_, number) = local.rsplit_once(':')?;
        let listens = state == "0A" && u16::from_str_radix(number, 16) == Ok(port);
        listens.then(|| inode.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1
   1: 0100007F:1F90 0100007F:A0B0 01 00000000:00000000 00:00000000 00000000     0        0 4712 1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1
   3: damaged
";
        assert_eq!(listening(table, 8080).collect::<Vec<_>>(), [4711]);
        assert_eq!(listening(table, 80).collect::<Vec<_>>(), [4713]);
        assert_eq!(listening(table, 81).count(), 0);
    }

    #[test]
    fn a_port_nobody_listens_on_has_no_holder() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        assert_eq!(of(port), None);
    }
}

//! What the kernel knows of the process: memory, descriptors, threads, connections at its door; and what the edge in it
//! says that it holds.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::support::{admin, wait_for};

/// Between two looks at a process that comes to rest.
const PAUSE: Duration = Duration::from_millis(100);
/// So many equal looks in a row are rest.
const STEADY: usize = 5;
/// After so many it is taken as it is.
const MOST: usize = 100;

/// A look at the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// Resident memory, in KiB.
    pub(crate) rss: u64,
    /// What of it is no file's.
    pub(crate) rss_anon: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: usize,
    /// The descriptors that are sockets.
    pub(crate) sockets: usize,
    /// Connections that the door has taken and not given back.
    pub(crate) at_the_door: usize,
}

/// What the process says that it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) tasks: u64,
    /// Of clients that are there: addresses, sockets, calls that are shared.
    pub(crate) of_the_present: u64,
    /// Tokens that verified or were asked about, sessions that were revoked, callers of limits.
    pub(crate) of_the_past: u64,
    /// Answers that are kept.
    pub(crate) answers: u64,
}

impl Held {
    /// Asks the edge.
    pub(crate) async fn by(edge: SocketAddr) -> Self {
        let held: Value = serde_json::from_str(&admin(edge, "/held").await.1).unwrap();
        let sum = |names: &[&str]| names.iter().map(|name| held[name].as_u64().unwrap()).sum::<u64>();
        let callers = held["callers"].as_object().unwrap().values().map(|count| count.as_u64().unwrap());
        Self {
            tasks: sum(&["tasks"]),
            of_the_present: sum(&["addresses", "gateway_sockets", "flights"]),
            of_the_past: sum(&["verified_tokens", "revoked_sessions", "opaque_tokens"])
                + callers.sum::<u64>(),
            answers: sum(&["kept_answers"]),
        }
    }
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    pub(crate) pid: u32,
    /// The port of its door.
    pub(crate) port: u16,
}

impl Watched {
    pub(crate) fn look(self) -> Vitals {
        let status = fs::read_to_string(self.folder("status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let line = line.unwrap_or_else(|| panic!("the process has ended:\n{status}"));
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let links: Vec<PathBuf> = fs::read_dir(self.folder("fd"))
            .unwrap()
            // What is closed meanwhile is none.
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect();
        Vitals {
            rss: number("VmRSS:"),
            rss_anon: number("RssAnon:"),
            threads: number("Threads:"),
            descriptors: links.len(),
            sockets: links.iter().filter(|link| link.to_string_lossy().starts_with("socket:")).count(),
            at_the_door: self.at_the_door(),
        }
    }

    /// Waits until all connections of clients are gone and descriptors stay as they are; of memory, the least that was
    /// seen then.
    pub(crate) async fn at_rest(self) -> Vitals {
        wait_for("the door has no connection left", async || (self.at_the_door() == 0).then_some(())).await;
        let mut looks = vec![self.look()];
        for _ in 0..MOST {
            tokio::time::sleep(PAUSE).await;
            let (look, last) = (self.look(), looks[looks.len() - 1]);
            if look.descriptors != last.descriptors {
                looks.clear();
            }
            looks.push(look);
            if looks.len() == STEADY {
                break;
            }
        }
        let least = *looks.iter().min_by_key(|look| look.rss_anon).unwrap();
        Vitals { rss: least.rss, rss_anon: least.rss_anon, ..looks[looks.len() - 1] }
    }

    fn at_the_door(self) -> usize {
        let port = format!(":{:04X}", self.port);
        let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(self.folder(table)));
        let lines = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
        lines
            .filter(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // Neither the socket that listens nor what is only the kernel's any more.
                fields[1].ends_with(&port) && fields[3] != "0A" && fields[9] != "0"
            })
            .count()
    }

    fn folder(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }
}

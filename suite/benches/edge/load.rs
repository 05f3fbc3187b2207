//! h2load, and what it says.

use std::{fs, process::Command};

use crate::{
    OTHER_CORE,
    case::{Case, Kind},
    number,
    tollgate::Tollgate,
    wire,
};

/// Connections of a full load, and the streams of each.
const CONNECTIONS: u32 = 16;
const STREAMS: u32 = 4;

/// Connections of a load at a fixed rate.
const PACED: u32 = 10;

pub(crate) struct Load {
    token: String,
    body: String,
    log: String,
}

impl Load {
    pub(crate) fn new(setup: &Tollgate) -> Self {
        let text = |name: &str| setup.file(name).to_str().unwrap().to_owned();
        let (body, log) = (text("request.bin"), text("times.tsv"));
        fs::write(&body, wire::request(wire::ORGANIZATION)).unwrap();
        Self { token: setup.token.clone(), body, log }
    }

    /// As fast as it goes. Returns the calls, all of which were answered well.
    pub(crate) fn full(&self, case: &Case, calls: u32) -> u32 {
        // HTTP/1.1 has one call at a time on each connection.
        let (connections, streams) =
            if case.kind == Kind::RestH1 { (CONNECTIONS * 2, 1) } else { (CONNECTIONS, STREAMS) };
        let calls = calls - calls % connections;
        let lost = self.run(case, calls, &["-c", &connections.to_string(), "-m", &streams.to_string()]);
        assert_eq!(lost, 0, "{case}: not all calls were answered well");
        calls
    }

    /// At a fixed rate, for some seconds, whether answers come or not. Returns how long each took, in microseconds.
    pub(crate) fn paced(&self, case: &Case, rate: u32) -> Vec<u64> {
        let of_each = (rate / PACED).to_string();
        let connections = PACED.to_string();
        let calls = rate / PACED * PACED * number("SECONDS_PACED", 3);
        let (lost, times) = self.timed(case, calls, &["-c", &connections, "-m", "100", "--rps", &of_each]);
        if lost > 0 {
            // A busy machine falls behind the rate, and then a proxy may refuse.
            eprintln!("{case}: {lost} of {calls} calls at a fixed rate were refused");
        }
        times
    }

    /// One client, one call after the other. Returns how long each took, in microseconds.
    pub(crate) fn alone(&self, case: &Case, calls: u32) -> Vec<u64> {
        let (lost, times) = self.timed(case, calls, &["-c", "1", "-m", "1"]);
        assert_eq!(lost, 0, "{case}: not all calls were answered well");
        times
    }

    /// Returns how many calls were not answered well, and how long each took.
    fn timed(&self, case: &Case, calls: u32, shape: &[&str]) -> (u32, Vec<u64>) {
        let _ = fs::remove_file(&self.log); // h2load appends
        let lost = self.run(case, calls, &[shape, &["--log-file", &self.log]].concat());
        let log = fs::read_to_string(&self.log).unwrap();
        (lost, log.lines().map(|line| line.split('\t').nth(2).unwrap().parse().unwrap()).collect())
    }

    /// Returns how many calls were not answered well.
    fn run(&self, case: &Case, calls: u32, shape: &[&str]) -> u32 {
        let mut command = Command::new("taskset");
        command.args(["-c", OTHER_CORE, "h2load", "-n", &calls.to_string()]).args(shape);
        command.args(["-H", &format!("authorization: Bearer {}", self.token)]);
        let path = match case.kind {
            Kind::Grpc => {
                command.args([
                    "-d",
                    &self.body,
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                ]);
                wire::METHOD.to_owned()
            }
            Kind::Rest => wire::path(),
            Kind::RestH1 => {
                command.arg("--h1");
                wire::path()
            }
        };
        let scheme = if case.tls { "https" } else { "http" };
        let output = command.arg(format!("{scheme}://{}{path}", case.address)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let count = |text: Option<&str>| text.and_then(|digits| digits.parse::<u64>().ok()).unwrap();
        let status = text.split("status codes: ").nth(1).and_then(|rest| rest.split(' ').next());
        // "traffic: 3.1MB (3241234) total, 301KB (308000) headers (space savings 92.10%), 2.4MB (2560000) data"
        let data = text.split('(').find_map(|part| part.split_once(") data")).map(|(bytes, _)| bytes);
        let least = if case.kind == Kind::Grpc { wire::answer().len() } else { wire::ORGANIZATION.len() };
        // What gRPC refuses is a 200 without a message.
        let good = count(status).min(count(data) / least as u64);
        calls.saturating_sub(u32::try_from(good).unwrap())
    }
}

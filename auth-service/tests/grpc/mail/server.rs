//! An SMTP server that remembers what it took, and refuses what it is told to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// A running server on this machine.
#[derive(Debug, Clone)]
pub(super) struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    greeting: u16,
    /// `AUTH PLAIN` must say this.
    proof: Option<String>,
    /// What the next letters to an address are answered.
    refusals: BTreeMap<String, VecDeque<u16>>,
    tries: BTreeMap<String, usize>,
    connections: usize,
    received: Vec<(String, String)>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            greeting: 220,
            proof: None,
            refusals: BTreeMap::new(),
            tries: BTreeMap::new(),
            connections: 0,
            received: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // A client that goes away in the middle is none of our business.
                tokio::spawn(talk(socket, shared.clone()));
            }
        });
        Self { port, state }
    }

    pub(super) fn url(&self, user: &str) -> String {
        format!("smtp://{user}127.0.0.1:{}", self.port)
    }

    pub(super) fn refuse(&self, to: &str, codes: impl IntoIterator<Item = u16>) {
        self.state.lock().unwrap().refusals.insert(to.to_owned(), codes.into_iter().collect());
    }

    pub(super) fn authenticate(&self, user: &str, password: &str) {
        self.state.lock().unwrap().proof = Some(STANDARD.encode(format!("\0{user}\0{password}")));
    }

    pub(super) fn greet(&self, code: u16) {
        self.state.lock().unwrap().greeting = code;
    }

    pub(super) fn received(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().received.clone()
    }

    pub(super) fn tries(&self, to: &str) -> usize {
        self.state.lock().unwrap().tries.get(to).copied().unwrap_or_default()
    }

    pub(super) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }
}

async fn talk(socket: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let (reader, mut writer) = socket.into_split();
    let mut lines = BufReader::new(reader);
    let greeting = {
        let mut state = state.lock().unwrap();
        state.connections += 1;
        format!("{} test\r\n", state.greeting)
    };
    writer.write_all(greeting.as_bytes()).await?;
    let (mut proven, mut to) = (false, String::new());
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        let may = proven || state.lock().unwrap().proof.is_none();
        let reply = match verb.as_str() {
            "EHLO" => "250-test\r\n250 AUTH PLAIN".to_owned(),
            "AUTH" => {
                proven = line.strip_prefix("AUTH PLAIN ") == state.lock().unwrap().proof.as_deref();
                if proven { "235 welcome".to_owned() } else { "535 who are you?".to_owned() }
            }
            "MAIL" if !may => "530 who are you?".to_owned(),
            "RCPT" => {
                to = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                let mut state = state.lock().unwrap();
                *state.tries.entry(to.clone()).or_default() += 1;
                let code = state.refusals.get_mut(&to).and_then(VecDeque::pop_front).unwrap_or(250);
                format!("{code} <{to}>")
            }
            "DATA" => {
                writer.write_all(b"354 go on\r\n").await?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") {
                    if lines.read_line(&mut text).await? == 0 {
                        return Ok(());
                    }
                }
                let text = text.trim_end_matches("\r\n.\r\n").to_owned();
                state.lock().unwrap().received.push((to.clone(), text));
                "250 taken".to_owned()
            }
            "QUIT" => "221 bye".to_owned(),
            _ => "250 fine".to_owned(),
        };
        writer.write_all(format!("{reply}\r\n").as_bytes()).await?;
        if verb == "QUIT" {
            return Ok(());
        }
    }
}

//! Readers of server-sent events in a process of their own: thousands of connections on one thread, which count events and
//! tell when the last of them has one.
//!
//! `--readers PORT COUNT`, the request as the first lines of standard input up to an empty one; then `arm` (answered with `all
//! NANOS` when every connection has had an event since: Unix time of the last one's) and `count` (`count EVENTS OPEN`).

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CONTROL: Token = Token(usize::MAX);

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64
}

struct Conn {
    stream: TcpStream,
    /// Bytes of "event:" seen so far.
    seen: usize,
    head: bool,
    armed: bool,
    open: bool,
}

/// Runs as the readers when the arguments say so; never returns then.
pub fn play() {
    let args: Vec<String> = std::env::args().collect();
    let Some(at) = args.iter().position(|a| a == "--readers") else { return };
    let port: u16 = args[at + 1].parse().expect("a port");
    let count: usize = args[at + 2].parse().expect("a number");
    hie::host::limits::raise_open_files();
    let stdin = std::io::stdin();
    let mut request = String::new();
    for line in stdin.lock().lines() {
        let line = line.expect("a line");
        request += &line;
        request += "\r\n";
        if line.is_empty() {
            break;
        }
    }
    let mut poll = Poll::new().expect("a poll");
    let waker = Waker::new(poll.registry(), CONTROL).expect("a waker");
    let (told, orders) = mpsc::channel::<String>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if told.send(line.expect("a line")).is_err() {
                return;
            }
            waker.wake().expect("awake");
        }
        // The parent has gone.
        std::process::exit(0);
    });
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut conns: Vec<Conn> = Vec::with_capacity(count);
    let mut state = State { heads: 0, waiting: 0, events: 0 };
    let mut events = Events::with_capacity(1024);
    for slot in 0..count {
        let mut stream = std::net::TcpStream::connect(to).expect("a connection");
        stream.write_all(request.as_bytes()).expect("a request");
        stream.set_nonblocking(true).expect("not blocking");
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(slot), Interest::READABLE).expect("registered");
        conns.push(Conn { stream, seen: 0, head: false, armed: false, open: true });
        if slot % 64 == 0 {
            poll.poll(&mut events, Some(Duration::ZERO)).expect("polled");
            state.heard(&events, &mut conns);
        }
    }
    let mut ready = false;
    loop {
        if !ready && state.heads == count {
            ready = true;
            println!("ready");
        }
        poll.poll(&mut events, None).expect("polled");
        if state.heard(&events, &mut conns) {
            println!("all {}", now());
        }
        for order in orders.try_iter() {
            match order.as_str() {
                "arm" => {
                    conns.iter_mut().for_each(|c| c.armed = c.open);
                    state.waiting = conns.iter().filter(|c| c.open).count();
                    println!("armed");
                }
                _ => println!("count {} {}", state.events, conns.iter().filter(|c| c.open).count()),
            }
        }
    }
}

struct State {
    heads: usize,
    waiting: usize,
    events: u64,
}

impl State {
    /// True when the last armed connection has had its event.
    fn heard(&mut self, events: &Events, conns: &mut [Conn]) -> bool {
        let mut scratch = vec![0; 64 * 1024];
        let before = self.waiting;
        for event in events.iter().filter(|e| e.token() != CONTROL) {
            let conn = &mut conns[event.token().0];
            loop {
                match conn.stream.read(&mut scratch) {
                    Ok(0) => {
                        conn.open = false;
                        break;
                    }
                    Ok(n) => self.take(conn, &scratch[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => {
                        conn.open = false;
                        break;
                    }
                }
            }
        }
        before > 0 && self.waiting == 0
    }

    fn take(&mut self, conn: &mut Conn, bytes: &[u8]) {
        if !conn.head {
            conn.head = true;
            self.heads += 1;
            assert!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
        }
        // "data:" at a line's beginning: both servers write it once per event.
        const MARK: &[u8] = b"\ndata:";
        for byte in bytes {
            conn.seen = if *byte == MARK[conn.seen] { conn.seen + 1 } else { usize::from(*byte == MARK[0]) };
            if conn.seen == MARK.len() {
                conn.seen = 0;
                self.events += 1;
                if std::mem::take(&mut conn.armed) {
                    self.waiting -= 1;
                }
            }
        }
    }
}

/// Reader processes.
pub struct Readers(Vec<(Child, ChildStdin, BufReader<ChildStdout>)>);

impl Readers {
    /// Opens `count` connections in as many processes as the limit of files asks for; all have their head when this returns.
    pub fn start(to: SocketAddr, request: &str, count: usize, nice: bool) -> Self {
        const EACH: usize = 5_000;
        let program = std::env::current_exe().expect("this program");
        let mut all = Vec::new();
        let mut left = count;
        while left > 0 {
            let some = left.min(EACH);
            left -= some;
            let mut command = if nice {
                let mut command = Command::new("nice");
                command.arg("-n").arg("19").arg(&program);
                command
            } else {
                Command::new(&program)
            };
            command.arg("--readers").arg(to.port().to_string()).arg(some.to_string());
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program starts again");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin.write_all(request.as_bytes()).expect("a request");
            let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
            all.push((child, stdin, stdout));
        }
        let mut readers = Self(all);
        assert!(readers.answers().iter().all(|a| a == "ready"));
        readers
    }

    fn answers(&mut self) -> Vec<String> {
        let one = |out: &mut BufReader<ChildStdout>| {
            let mut line = String::new();
            out.read_line(&mut line).expect("an answer");
            line.trim().to_owned()
        };
        self.0.iter_mut().map(|(_, _, out)| one(out)).collect()
    }

    fn order(&mut self, order: &str) -> Vec<String> {
        for (_, stdin, _) in &mut self.0 {
            writeln!(stdin, "{order}").expect("an order");
        }
        self.answers()
    }

    /// Milliseconds from just before `publish` until the last connection has had an event.
    pub fn all_have(&mut self, publish: impl FnOnce()) -> f64 {
        assert!(self.order("arm").iter().all(|a| a == "armed"));
        let begin = now();
        publish();
        let last = self.answers().iter().map(|a| a.strip_prefix("all ").expect("all").parse::<u64>().expect("a time")).max();
        (last.expect("a process").saturating_sub(begin)) as f64 / 1e6
    }

    /// Events so far, and connections still open.
    pub fn count(&mut self) -> (u64, u64) {
        self.order("count").iter().fold((0, 0), |(events, open), answer| {
            let numbers: Vec<u64> = answer.split(' ').skip(1).map(|n| n.parse().expect("a number")).collect();
            (events + numbers[0], open + numbers[1])
        })
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for (child, ..) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

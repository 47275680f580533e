use super::*;
use std::{io::Write, net::TcpStream, time::Duration};

fn wanted(name: &str, instances: usize) -> Wanted {
    Wanted { name: name.into(), address: ([127, 0, 0, 1], 0).into(), instances }
}

fn given(name: &str, source: Source, address: SocketAddr) -> Inherited {
    Inherited { name: name.into(), source, kept: source == Source::Systemd, socket: bind::listen(address, 16).expect("listens") }
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[test]
fn every_instance_gets_its_own_socket_on_one_port() {
    let listeners = Listeners::open(&[wanted("http", 3)], vec![]).expect("opens");
    let address = listeners.address("http").expect("is there");
    assert_ne!(address.port(), 0);
    for instance in 0..3 {
        let mine = listeners.of("http", instance).expect("clones");
        assert_eq!((mine.len(), mine[0].local_addr().expect("address")), (1, address));
    }
    assert!(listeners.of("mllp:x", 0).expect("none").is_empty());
}

#[test]
fn an_instance_that_ends_loses_nothing_in_its_queue() {
    let listeners = Listeners::open(&[wanted("http", 1)], vec![]).expect("opens");
    let address = listeners.address("http").expect("is there");
    let first = listeners.one("http").expect("clones");
    let mut client = TcpStream::connect(address).expect("queued");
    client.write_all(b"x").expect("sent");
    drop(first);
    let again = listeners.one("http").expect("clones").expect("is there");
    again.set_nonblocking(false).expect("blocking");
    assert_eq!(again.accept().expect("still queued").1, client.local_addr().expect("address"));
}

#[test]
fn a_port_in_use_is_told_even_when_its_holder_shares_it() {
    let first = Listeners::open(&[wanted("http", 2)], vec![]).expect("opens");
    let address = first.address("http").expect("is there");
    let error = Listeners::open(&[Wanted { address, ..wanted("mllp:a", 1) }], vec![]).expect_err("in use").to_string();
    assert!(error.contains(&format!("port {} is in use", address.port())), "{error}");
    assert!(error.contains("mllp:a") && error.contains("ss -ltnp"), "{error}");
}

#[test]
fn sockets_of_an_upgrade_are_taken_by_address_whatever_their_name() {
    let socket = given("http", Source::Upgrade, any());
    let address = socket.address().expect("listens");
    let elsewhere = given("mllp:a", Source::Upgrade, any());
    let moved = bind::listen(any(), 1).expect("a free port").local_addr().expect("address");
    let all = [Wanted { address, ..wanted("http", 2) }, Wanted { address: moved, ..wanted("mllp:a", 1) }];
    let listeners = Listeners::open(&all, vec![socket, elsewhere]).expect("opens");
    assert!(listeners.groups[0].inherited && !listeners.groups[1].inherited);
    assert_eq!(listeners.groups[0].sockets.len(), 2, "one more socket for the second instance");
    assert_eq!(listeners.address("mllp:a"), Some(moved));
}

#[test]
fn what_is_not_wanted_any_more_does_not_stand_in_the_way() {
    let wide = given("http", Source::Upgrade, ([0, 0, 0, 0], 0).into());
    let port = wide.address().expect("listens").port();
    let narrow = Wanted { address: ([127, 0, 0, 1], port).into(), ..wanted("http", 1) };
    Listeners::open(&[narrow], vec![wide]).expect("the wide one is closed first");

    let socket = given("mllp:old", Source::Upgrade, any());
    let address = socket.address().expect("listens");
    let renamed = Wanted { address, ..wanted("mllp:new", 1) };
    assert!(Listeners::open(&[renamed], vec![socket]).expect("opens").groups[0].inherited);
}

#[test]
fn systemd_sockets_are_taken_by_name_else_by_address() {
    let (named, unnamed, odd) = (
        given("mllp.a", Source::Systemd, any()),
        given("hie.socket", Source::Systemd, any()),
        given("x", Source::Systemd, any()),
    );
    let (first, second) = (named.address().expect("listens"), unnamed.address().expect("listens"));
    // The configured address of the named one is another: the unit decides.
    let all = [wanted("mllp:a", 1), Wanted { address: second, ..wanted("http", 1) }];
    let listeners = Listeners::open(&all, vec![named, unnamed, odd]).expect("opens");
    assert_eq!(listeners.address("mllp:a"), Some(first));
    assert_eq!(listeners.address("http"), Some(second));
    assert!(listeners.groups.iter().all(|g| g.inherited));
}

#[test]
fn more_sockets_than_instances_are_all_served_and_fewer_are_shared() {
    let sockets = |n: usize| {
        let first = given("http", Source::Systemd, any());
        let address = first.address().expect("listens");
        std::iter::once(first).chain((1..n).map(|_| given("http", Source::Systemd, address))).collect::<Vec<_>>()
    };
    let listeners = Listeners::open(&[wanted("http", 2)], sockets(5)).expect("opens");
    let counts = [0, 1].map(|i| listeners.of("http", i).expect("clones").len());
    assert_eq!(counts, [3, 2]);

    // A socket that does not share its port cannot be joined by another.
    let alone = std::net::TcpListener::bind(any()).expect("binds");
    let alone = Inherited { name: "http".into(), source: Source::Systemd, kept: true, socket: alone };
    let listeners = Listeners::open(&[wanted("http", 3)], vec![alone]).expect("opens");
    assert_eq!([0, 1, 2].map(|i| listeners.of("http", i).expect("clones").len()), [1, 1, 1]);
}

#[test]
fn whoever_is_connected_is_accepted_and_whoever_comes_later_is_refused() {
    let soon = Duration::from_secs(5);
    let systemd = given("mllp:s", Source::Systemd, any());
    let kept = systemd.address().expect("an address");
    let all = [wanted("http", 2), Wanted { address: kept, ..wanted("mllp:s", 1) }, wanted("health", 1)];
    let listeners = Listeners::open(&all, vec![systemd]).expect("opens");
    let (http, health) = (listeners.address("http").expect("is there"), listeners.address("health").expect("is there"));
    let waiting: Vec<_> = (0..8).map(|_| TcpStream::connect_timeout(&http, soon).expect("connects")).collect();
    listeners.hold_off();
    let late = std::thread::spawn(move || TcpStream::connect_timeout(&http, Duration::from_secs(20)));
    let unanswered = TcpStream::connect_timeout(&http, Duration::from_millis(300)).expect_err("nobody new");
    assert_eq!(unanswered.kind(), std::io::ErrorKind::TimedOut);
    let mut accepted = 0;
    for socket in (0..2).flat_map(|instance| listeners.of("http", instance).expect("clones")) {
        while socket.accept().is_ok() {
            accepted += 1;
        }
    }
    assert_eq!(accepted, waiting.len(), "all that were connected, and nobody who came later");
    listeners.close();
    // It asks again after a second.
    let refused = late.join().expect("ends").expect_err("refused");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(TcpStream::connect_timeout(&http, soon).expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    for goes_on in [kept, health] {
        TcpStream::connect_timeout(&goes_on, soon).expect("what systemd has too, and health, go on");
    }
}

//! Clients are let in by what they show, and only by that.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hie::{
    channel::client::{self, Client},
    config::clients::{load, token_sha256},
    engine::{
        directory::{Directory, hash_password},
        ports::{Credentials, Denied, Identity},
    },
    message::envelope::HeaderBytes,
    telemetry,
};
use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

/// Who it is, when the check is over.
fn identify(
    directory: &Arc<Directory>,
    peer: Option<SocketAddr>,
    credentials: &Credentials,
    require: bool,
) -> Result<Arc<str>, Denied> {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    RUNTIME.block_on(async { directory.identify(peer, credentials, require).settled().await })
}

fn client(name: &str, rest: &str) -> Client {
    client::parse(&format!("[[client]]\nname = \"{name}\"\n{rest}")).unwrap().remove(0)
}

fn basic(user: &str, password: &str) -> Credentials {
    header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Credentials {
    header(&format!("Bearer {token}"))
}

fn header(value: &str) -> Credentials {
    Credentials { authorization: Some(HeaderBytes(value.as_bytes().to_vec())), certificate: None }
}

fn peer(text: &str) -> Option<SocketAddr> {
    Some(format!("{text}:4711").parse().unwrap())
}

fn lab(password: &str) -> Client {
    client("lab", &format!("roles = [\"senders\"]\npassword = \"{}\"", hash_password(password.as_bytes()).unwrap()))
}

#[test]
fn nobody_and_somebody() {
    let directory = Arc::new(Directory::new(vec![lab("right")]).unwrap());
    let from = peer("10.1.1.1");
    assert_eq!(identify(&directory, from, &Credentials::default(), false).as_deref(), Ok("anonymous"));
    assert_eq!(identify(&directory, from, &Credentials::default(), true), Err(Denied::Unauthenticated));
    assert_eq!(identify(&directory, from, &basic("lab", "right"), true).as_deref(), Ok("lab"));
    // Wrong ones are refused also where none is asked for.
    for wrong in [
        basic("lab", "wrong"),
        basic("nobody", "right"),
        basic("lab", ""),
        bearer("x"),
        header("Basic"),
        header("Basic !!!"),
        header("Digest x"),
        header(""),
    ] {
        for require in [true, false] {
            assert_eq!(identify(&directory, from, &wrong, require), Err(Denied::BadCredentials));
        }
    }
}

#[test]
fn a_known_password_costs_microseconds() {
    let directory = Arc::new(Directory::new(vec![lab("right")]).unwrap());
    let credentials = basic("lab", "right");
    let first = Instant::now();
    identify(&directory, None, &credentials, true).unwrap();
    let first = first.elapsed();
    let start = Instant::now();
    for _ in 0..10_000 {
        identify(&directory, None, &credentials, true).unwrap();
    }
    let each = start.elapsed() / 10_000;
    println!("first {first:?}, then {each:?} each");
    assert!(each < Duration::from_micros(200), "{each:?}");
    assert!(first > each * 20, "the first one did not go through Argon2: {first:?}");
}

#[test]
fn an_unknown_user_goes_through_the_same_check() {
    let directory = Arc::new(Directory::new(vec![lab("right")]).unwrap());
    let time = |credentials: Credentials| {
        let start = Instant::now();
        assert_eq!(identify(&directory, None, &credentials, false), Err(Denied::BadCredentials));
        start.elapsed()
    };
    // The quickest of several: noise only adds.
    let known = (0..5).map(|i| time(basic("lab", &format!("wrong{i}")))).min().unwrap();
    let unknown = (0..5).map(|i| time(basic("nobody", &format!("wrong{i}")))).min().unwrap();
    println!("known {known:?}, unknown {unknown:?}");
    // Without the check it would be a thousandth; a busy machine doubles either.
    assert!(unknown > known / 10 && known > unknown / 10, "known {known:?}, unknown {unknown:?}");
}

#[test]
fn a_changed_password_and_a_removed_client_count_at_once() {
    let directory = Arc::new(Directory::new(vec![lab("old")]).unwrap());
    identify(&directory, None, &basic("lab", "old"), true).unwrap();
    directory.replace(vec![lab("new")]).unwrap();
    assert_eq!(identify(&directory, None, &basic("lab", "old"), true), Err(Denied::BadCredentials));
    assert_eq!(identify(&directory, None, &basic("lab", "new"), true).as_deref(), Ok("lab"));
    directory.replace(vec![]).unwrap();
    assert_eq!(identify(&directory, None, &basic("lab", "new"), true), Err(Denied::BadCredentials));
}

#[test]
fn tokens_and_disabled_clients() {
    let directory = Arc::new(
        Directory::new(vec![
            client("ehr", &format!("token_sha256 = \"{}\"", token_sha256(b"t-0123456789"))),
            client("gone", &format!("enabled = false\ntoken_sha256 = \"{}\"", token_sha256(b"t-gone"))),
        ])
        .unwrap(),
    );
    assert_eq!(identify(&directory, None, &bearer("t-0123456789"), true).as_deref(), Ok("ehr"));
    assert_eq!(identify(&directory, None, &header("bearer  t-0123456789 "), true).as_deref(), Ok("ehr"));
    assert_eq!(identify(&directory, None, &bearer("t-gone"), false), Err(Denied::BadCredentials));
    assert_eq!(identify(&directory, None, &bearer(&token_sha256(b"t-0123456789")), false), Err(Denied::BadCredentials));
}

#[test]
fn addresses() {
    let token = format!("allow_ips = [\"10.0.0.0/8\", \"2001:db8::/32\"]\ntoken_sha256 = \"{}\"", token_sha256(b"t"));
    let directory = Arc::new(Directory::new(vec![client("ehr", &token)]).unwrap());
    for (from, expected) in [
        ("10.9.9.9", Ok("ehr")),
        ("[::ffff:10.9.9.9]", Ok("ehr")),
        ("[2001:db8::7]", Ok("ehr")),
        ("192.168.0.1", Err(&Denied::Address)),
        ("[::1]", Err(&Denied::Address)),
    ] {
        assert_eq!(identify(&directory, peer(from), &bearer("t"), true).as_deref(), expected, "{from}");
    }
    assert!(directory.may_be("ehr", peer("10.0.0.1")) && !directory.may_be("ehr", peer("11.0.0.1")));
    assert!(directory.may_be("no-client", peer("11.0.0.1")));
}

#[test]
fn certificates_by_fingerprint_and_by_common_name() {
    let make = |names: &[&str]| {
        let mut params = rcgen::CertificateParams::new(vec!["x.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(rcgen::DnType::CommonName, *name);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        Bytes::copy_from_slice(params.self_signed(&key).unwrap().der())
    };
    let (named, pinned, stranger) = (make(&["lab.example"]), make(&["pinned"]), make(&["stranger"]));
    let fingerprint = token_sha256(&pinned);
    let directory = Arc::new(
        Directory::new(vec![
            client("lab", "certificate = \"lab.example\""),
            client("pin", &format!("certificate = \"{fingerprint}\"")),
        ])
        .unwrap(),
    );
    let show = |der: &Bytes| Credentials { authorization: None, certificate: Some(der.clone()) };
    assert_eq!(identify(&directory, None, &show(&named), true).as_deref(), Ok("lab"));
    assert_eq!(identify(&directory, None, &show(&pinned), true).as_deref(), Ok("pin"));
    assert_eq!(identify(&directory, None, &show(&stranger), true), Err(Denied::Unauthenticated));
    assert_eq!(identify(&directory, None, &show(&stranger), false).as_deref(), Ok("anonymous"));
    assert_eq!(identify(&directory, None, &show(&Bytes::from_static(b"not DER")), false).as_deref(), Ok("anonymous"));
}

#[test]
fn rates_are_per_client_and_survive_a_swap() {
    let clients = || vec![client("a", "rate = { per_second = 0.1, burst = 3 }"), client("b", "")];
    let directory = Arc::new(Directory::new(clients()).unwrap());
    for _ in 0..3 {
        directory.rate_check("a").unwrap();
    }
    let wait = directory.rate_check("a").unwrap_err();
    assert!(wait > Duration::from_secs(5) && wait <= Duration::from_secs(10), "{wait:?}");
    directory.replace(clients()).unwrap();
    assert!(directory.rate_check("a").is_err());
    for _ in 0..1000 {
        directory.rate_check("b").unwrap();
        directory.rate_check("no-client").unwrap();
    }
}

#[test]
fn channels_allow_names_and_roles() {
    let directory = Arc::new(Directory::new(vec![client("lab", "roles = [\"senders\"]")]).unwrap());
    let allow = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    for (name, list, expected) in [
        ("anonymous", vec![], true),
        ("lab", vec!["lab"], true),
        ("lab", vec!["senders"], true),
        ("lab", vec!["other"], false),
        ("anonymous", vec!["senders"], false),
        ("anonymous", vec!["anonymous"], true),
    ] {
        assert_eq!(directory.allowed(name, &allow(&list)), expected, "{name} {list:?}");
    }
}

#[test]
fn what_two_clients_share_is_refused_as_a_whole() {
    let token = format!("token_sha256 = \"{}\"", token_sha256(b"t"));
    for pair in [
        vec![client("a", ""), client("a", "")],
        vec![client("a", &token), client("b", &token)],
        vec![client("a", "certificate = \"x\""), client("b", "certificate = \"x\"")],
    ] {
        assert!(Directory::new(pair).is_err());
    }
    let directory = Arc::new(Directory::new(vec![client("a", &token)]).unwrap());
    directory.replace(vec![client("b", &token), client("c", &token)]).unwrap_err();
    assert_eq!(identify(&directory, None, &bearer("t"), true).as_deref(), Ok("a"));
}

#[test]
fn one_address_cannot_keep_the_node_busy_and_right_passwords_still_pass() {
    let directory = Arc::new(Directory::new(vec![lab("right")]).unwrap());
    identify(&directory, peer("10.0.0.2"), &basic("lab", "right"), true).unwrap();
    let from = peer("10.0.0.1");
    let results: Vec<_> = (0..60).map(|i| identify(&directory, from, &basic("lab", &format!("w{i}")), true)).collect();
    assert!(results[..20].iter().all(|r| *r == Err(Denied::BadCredentials)));
    assert!(results.contains(&Err(Denied::Busy)));
    assert_eq!(identify(&directory, from, &basic("lab", "right"), true).as_deref(), Ok("lab"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_bounded_and_a_hundred_connections_check_once() {
    let directory = Arc::new(Directory::new(vec![lab("right")]).unwrap());
    let start = Instant::now();
    let one = {
        directory.identify(None, &basic("lab", "other"), true).settled().await.unwrap_err();
        start.elapsed()
    };
    let start = Instant::now();
    let all = (0..50).map(|_| {
        let directory = directory.clone();
        tokio::spawn(async move { directory.identify(None, &basic("lab", "right"), true).settled().await })
    });
    for task in all.collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap().as_deref(), Ok("lab"));
    }
    println!("one check {one:?}, fifty senders with one password {:?}", start.elapsed());
    assert!(start.elapsed() < one * 25, "each was checked by itself");

    let flood = (0..300).map(|i| {
        let directory = directory.clone();
        tokio::spawn(async move { directory.identify(None, &basic("lab", &format!("w{i}")), true).settled().await })
    });
    let mut busy = 0;
    for task in flood.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Err(Denied::Busy) => busy += 1,
            other => assert_eq!(other, Err(Denied::BadCredentials)),
        }
    }
    assert!(busy > 100, "{busy} of 300 were told to come again");
}

#[test]
fn failures_are_counted_by_kind_and_never_by_the_name_given() {
    let directory = Arc::new(
        Directory::new(vec![client("counted", &format!("password = \"{}\"", hash_password(b"right").unwrap()))]).unwrap(),
    );
    identify(&directory, None, &basic("counted", "canary-password"), false).unwrap_err();
    identify(&directory, None, &basic("canary-user", "canary-password"), false).unwrap_err();
    identify(&directory, None, &bearer("canary-token"), false).unwrap_err();
    let text = telemetry::encode();
    assert!(text.contains(r#"hie_identify_failures_total{kind="wrong-password",client="counted"} 1"#), "{text}");
    assert!(text.contains(r#"kind="unknown-client",client="""#) && text.contains(r#"kind="unknown-token",client="""#));
    assert!(!text.contains("canary"));
}

#[test]
fn the_folder_is_read_with_its_secret_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert_eq!(load(&folder.path().join("absent")).unwrap(), vec![]);
    write("hash", &format!("{}\n", hash_password(b"right").unwrap()));
    write("token", "t-0123456789\n");
    write("a.toml", "[[client]]\nname = \"a\"\npassword_file = \"hash\"\n");
    write("b.toml", "[[client]]\nname = \"b\"\ntoken_file = \"token\"\n");
    write(".c.toml.tmp", "half");
    write("notes.txt", "no clients");
    let directory = Arc::new(Directory::new(load(folder.path()).unwrap()).unwrap());
    assert_eq!(identify(&directory, None, &basic("a", "right"), true).as_deref(), Ok("a"));
    assert_eq!(identify(&directory, None, &bearer("t-0123456789"), true).as_deref(), Ok("b"));

    write("hash", "canary-in-clear");
    write("c.toml", "[[client]]\nname = \"b\"\n\n[[client]]\nname = \"c\"\ntoken_file = \"absent\"\n");
    write("d.toml", "[[client]]\nnme = \"d\"\n");
    let errors: Vec<String> = load(folder.path()).unwrap_err().iter().map(ToString::to_string).collect();
    let all = errors.join("\n");
    assert_eq!(errors.len(), 4, "{all}");
    assert!(all.contains("hash-password") && all.contains("b.toml already") && all.contains("absent"), "{all}");
    assert!(all.contains("d.toml, line 2, column 1: unknown key `nme`; the nearest known one is `name`"), "{all}");
    assert!(!all.contains("canary"), "{all}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_check_leaves_the_thread_to_others() {
    let directory = Arc::new(Directory::new(vec![lab("right")]).unwrap());
    let checking = directory.identify(None, &basic("lab", "right"), true);
    assert!(matches!(checking, Identity::Checking(_)), "not checked by the caller");
    let mut turns = 0;
    let others = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            turns += 1;
        }
    };
    let client = tokio::select! {
        client = checking.settled() => client,
        () = others => unreachable!("they never end"),
    };
    assert_eq!(client.as_deref(), Ok("lab"));
    assert!(turns > 2, "others had {turns} turns meanwhile");
    assert!(matches!(directory.identify(None, &basic("lab", "right"), true), Identity::Known(Ok(_))), "seen before: at once");
}

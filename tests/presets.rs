//! Presets: the guide's numbers to the digit, the layer they form, and their settings in force: in the process, in a
//! control group, in systemd's and the kernel's eyes, in a real RabbitMQ and a real Consul.

mod harness;

use harness::cgroup::{Cgroup, unit_value};
use harness::channels::all_to;
use harness::parts::{self, Consul, Rabbitmq};
use harness::{Builder, Node, Receiver, wait_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const TIERS: [&str; 5] = ["edge", "small-clinic", "medium-hospital", "large-hospital", "hospital-network"];

fn hie(args: &[&str]) -> Output {
    let mut command = Command::new(harness::node::binary());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIE_")) {
        command.env_remove(name);
    }
    command.args(args).output().expect("hie runs")
}

fn text(args: &[&str]) -> String {
    let output = hie(args);
    assert!(output.status.success(), "hie {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(args)).expect("JSON")
}

/// The file as other tools read it.
fn file(tier: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("presets/{tier}.json"));
    serde_json::from_str(&fs::read_to_string(path).expect("a preset")).expect("JSON")
}

fn range(value: &Value) -> (u64, u64) {
    (value["min"].as_u64().expect("min"), value["max"].as_u64().expect("max"))
}

// === the guide's numbers ===

#[test]
fn the_tiers_have_the_numbers_of_the_seed() {
    // Step 4 of the guide: patients a day, cores, GB of memory, GB of disk, Mbit/s, connections per resource, in total, USD.
    type Row = (&'static str, (u64, u64), (u64, u64), (u64, u64), u64, u64, u64, u64, (u64, u64));
    let rows: [Row; 4] = [
        ("small-clinic", (500, 5_000), (2, 4), (2, 4), 50, 100, 100, 1_000, (20, 50)),
        ("medium-hospital", (5_000, 10_000), (4, 8), (8, 16), 100, 1_000, 200, 2_000, (80, 150)),
        ("large-hospital", (10_000, 20_000), (8, 16), (16, 32), 200, 1_000, 300, 5_000, (150, 300)),
        ("hospital-network", (20_000, 50_000), (16, 32), (32, 64), 500, 10_000, 500, 10_000, (300, 600)),
    ];
    for (name, patients, cores, memory, disk, network, per_resource, total, cost) in rows {
        let tier = file(name);
        assert_eq!(tier["name"], name);
        assert_eq!(range(&tier["patients_per_day"]), patients, "{name}");
        assert_eq!(range(&tier["hardware"]["cores"]), cores, "{name}");
        assert_eq!(range(&tier["hardware"]["memory_mib"]), (memory.0 * 1024, memory.1 * 1024), "{name}");
        assert_eq!(tier["hardware"]["disk_gb"], disk, "{name}");
        assert_eq!(tier["hardware"]["network_mbps"], network, "{name}");
        assert_eq!(tier["node"]["feed"]["max_connections_per_resource"], per_resource, "{name}");
        assert_eq!(tier["node"]["feed"]["max_connections"], total, "{name}");
        // Step 3: 30 minutes everywhere. Step 5: 65536 open files.
        assert_eq!(tier["node"]["feed"]["timeout"], "30m", "{name}");
        assert_eq!(tier["system"]["nofile"], 65_536, "{name}");
        assert_eq!(range(&tier["cost_usd_per_month"]), cost, "{name}");
    }
    // Step 2: patients a day, peak connections, connections per resource.
    let bands = [
        (500, 1_000, 20, 50, 50),
        (1_000, 5_000, 50, 150, 100),
        (5_000, 10_000, 150, 300, 200),
        (10_000, 20_000, 300, 600, 300),
        (20_000, 50_000, 600, 1_500, 500),
    ];
    for (name, (from, to, least, most, per_resource)) in TIERS.into_iter().zip(bands) {
        let tier = file(name);
        assert_eq!(
            (tier["capacity"]["patients_from"].as_u64(), tier["patients_per_day"]["max"].as_u64()),
            (Some(from), Some(to)),
            "{name}"
        );
        assert_eq!(range(&tier["capacity"]["peak_connections"]), (least, most), "{name}");
        assert_eq!(tier["node"]["feed"]["max_connections_per_resource"], per_resource, "{name}");
    }
    // What the guide does not give: one core and 512 MiB.
    let edge = file("edge");
    assert_eq!((edge["hardware"]["cores"]["min"].as_u64(), edge["hardware"]["memory_mib"]["min"].as_u64()), (Some(1), Some(512)));
}

#[test]
fn what_is_derived_fits_together() {
    let whole = |value: &Value| value.as_u64().expect("a whole number");
    let mut last: Option<Value> = None;
    for name in TIERS {
        let tier = file(name);
        let (cores, memory) = (range(&tier["hardware"]["cores"]), range(&tier["hardware"]["memory_mib"]));
        // The node's group leaves an eighth of the smallest machine to the system, and may use all cores of the largest.
        assert_eq!(whole(&tier["system"]["cgroup"]["memory_mib"]), memory.0 / 8 * 7, "{name}");
        assert_eq!(whole(&tier["system"]["cgroup"]["cpu_percent"]), cores.1 * 100, "{name}");
        assert!((cores.0..=cores.1).contains(&whole(&tier["vm"]["vcpu"])), "{name}");
        assert!((memory.0..=memory.1).contains(&whole(&tier["vm"]["memory_mib"])), "{name}");
        assert_eq!(whole(&tier["node"]["node"]["cluster"]), cores.0, "{name}: an accepting instance for each core");
        // Every connection that is allowed is an open file, with as many again for receivers and the ledger.
        let open = ["http", "mllp", "feed"].iter().map(|s| whole(&tier["node"][s]["max_connections"])).sum::<u64>();
        assert!(whole(&tier["system"]["nofile"]) >= 2 * open, "{name}: {open} connections");
        // The ledger and what stays free fit on the disk with a fifth for everything else.
        let size = tier["node"]["ledger"]["max_size"].as_str().expect("a size").parse::<bytesize::ByteSize>().expect("a size");
        assert!(size.as_u64() <= whole(&tier["hardware"]["disk_gb"]) * 800_000_000, "{name}: {size}");
        // The broker lets a node have all its channels, each with two routes, and waits longer than the node holds a message.
        let transport = &tier["node"]["transport"];
        let channels = [20, 40, 50, 80, 100][TIERS.iter().position(|t| *t == name).expect("a tier")];
        let needed = channels * whole(&transport["partitions"]) * (3 + 2) + 8;
        assert!(whole(&tier["rabbitmq"]["channel_max"]) >= needed, "{name}: {needed} channels of AMQP");
        let hold = humantime::parse_duration(transport["hold"].as_str().expect("a time")).expect("a time");
        assert!(hold * 3 <= Duration::from_secs(60 * whole(&tier["rabbitmq"]["consumer_timeout_minutes"])), "{name}: {hold:?}");
        // Stream and ledger fit on the disk together.
        let stream = transport["stream_max_bytes"].as_str().expect("a size").parse::<bytesize::ByteSize>().expect("a size");
        assert!(stream.as_u64() + size.as_u64() <= whole(&tier["hardware"]["disk_gb"]) * 1_000_000_000, "{name}: {stream}");
        // A larger tier has more of everything.
        if let Some(last) = last {
            for (section, key) in [
                ("system", "nofile"),
                ("rabbitmq", "memory_mib"),
                ("rabbitmq", "connection_max"),
                ("rabbitmq", "channel_max"),
                ("vm", "vcpu"),
            ] {
                assert!(whole(&tier[section][key]) >= whole(&last[section][key]), "{name}: {section}.{key}");
            }
            for section in ["http", "mllp", "feed"] {
                assert!(
                    tier["node"][section]["max_connections"].as_u64() > last["node"][section]["max_connections"].as_u64(),
                    "{name}"
                );
            }
        }
        last = Some(tier);
    }
}

#[test]
fn list_and_show_tell_every_preset() {
    let list = json(&["preset", "list", "--json"]);
    assert_eq!(list, Value::Array(TIERS.map(file).to_vec()), "the program has the files of presets/");
    let table = text(&["preset", "list"]);
    for name in TIERS {
        assert!(table.lines().any(|line| line.starts_with(name)), "{table}");
        assert_eq!(json(&["preset", "show", name, "--json"]), file(name));
    }
    let shown = text(&["preset", "show", "small-clinic"]);
    assert!(shown.lines().any(|l| l.split_whitespace().eq(["node.feed.max_connections_per_resource", "100"])), "{shown}");
    let unknown = hie(&["preset", "show", "small-clinik"]);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(64));
    assert!(said.contains("no preset is called \"small-clinik\"; did you mean \"small-clinic\"?"), "{said}");
}

// === the layer ===

/// `hie check --json` of a node: value and origin by key.
fn values(node: &Node, more: &[&str]) -> BTreeMap<String, (String, String)> {
    let config = node.config_file();
    let mut args = vec!["check", "--json", "--config", config.to_str().expect("UTF-8")];
    args.extend(more);
    let told = json(&args);
    let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
    let rows = told["values"].as_array().expect("rows");
    rows.iter().map(|row| (text(row, "key"), (text(row, "value"), text(row, "origin")))).collect()
}

/// As the program writes sizes and durations: without blanks, and without the zero after the point.
fn plain(text: &str) -> String {
    text.replace(".0 ", " ").replace(' ', "")
}

#[test]
fn every_value_of_a_preset_can_be_overridden_and_check_says_which_layer_won() {
    let node = Builder::new().channel(all_to(&Receiver::willing())).lay_out();
    let without = values(&node, &[]);
    assert!(without.values().all(|(_, origin)| !origin.starts_with("preset")), "no preset unless one is asked for");
    for name in TIERS {
        let found = values(&node, &["--preset", name]);
        let tier = file(name);
        let mut overridden = Vec::new();
        for (section, keys) in tier["node"].as_object().expect("sections") {
            for (key, value) in keys.as_object().expect("keys") {
                let list = if section == "mllp" { ".0" } else { "" };
                let dotted = format!("{section}{list}.{key}");
                let (seen, origin) = &found[&dotted];
                let wanted = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                assert_eq!((plain(seen), origin.as_str()), (plain(&wanted), format!("preset {name}").as_str()), "{dotted}");
                overridden.push((dotted, seen.clone()));
            }
        }
        // The flag goes before the preset, for every key of it.
        let flags: Vec<String> = overridden.iter().map(|(key, value)| format!("{}={value}", key.replace(".0.", "."))).collect();
        let mut args = vec!["--preset", name];
        flags.iter().for_each(|flag| args.extend(["--set", flag.as_str()]));
        let over = values(&node, &args);
        for (key, value) in &overridden {
            let flag = format!("--set {}", key.replace(".0.", "."));
            assert_eq!(over[key], (value.clone(), flag), "{key}");
        }
        // What is no key of the preset stays as it was.
        for (key, (value, origin)) in without.iter().filter(|(key, _)| *key != "node.preset") {
            if !overridden.iter().any(|(own, _)| own == key) {
                assert_eq!(&found[key], &(value.clone(), origin.clone()), "{key}");
            }
        }
    }
}

#[test]
fn an_unknown_preset_is_refused_with_the_nearest_name() {
    let node = Builder::new().node("preset = \"medium-hosptal\"").lay_out();
    for command in ["check", "run"] {
        let output = hie(&[command, "--config", node.config_file().to_str().expect("UTF-8")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert!(
            said.contains(
                "hie.toml:4:10: node.preset: no preset is called \"medium-hosptal\"; did you mean \"medium-hospital\"?"
            ),
            "{said}"
        );
    }
}

// === in force in the process, in a control group ===

/// The limit of open files for tests: the preset's, or what this machine allows.
fn nofile(unit: &str) -> u64 {
    let wanted: u64 = unit_value(unit, "LimitNOFILE").parse().expect("a number");
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    if hard < wanted {
        println!("open files: {hard} instead of {wanted}, more this machine does not allow");
    }
    wanted.min(hard)
}

fn threads(pid: i32, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    tasks.filter(|t| fs::read_to_string(t.path().join("comm")).is_ok_and(|n| n.starts_with(name))).count()
}

#[test]
fn the_rendered_settings_are_in_force_in_process_and_control_group() {
    let receiver = Receiver::willing();
    for name in TIERS {
        let tier = file(name);
        let unit = text(&["preset", "render", name, "--part", "systemd"]);
        let env = text(&["preset", "render", name, "--part", "env"]);
        let (variable, value) = env.lines().last().and_then(|line| line.split_once('=')).expect("a variable");
        assert_eq!(unit_value(&unit, "Environment"), format!("{variable}={value}"), "the drop-in sets it as well");
        let (group, files) = (Cgroup::of_unit(name, &unit), nofile(&unit));
        let mut builder = Builder::new().channel(all_to(&receiver)).env(variable, value);
        builder.wrapper = group.wrapper(files);
        let node = builder.start();
        let pid = node.pid();
        assert!(group.processes().contains(&pid.to_string()), "{name}: the node is in its group");

        let number = |section: &str, key: &str| tier["node"][section][key].as_u64().expect("a number") as usize;
        let accepting = || threads(pid, "hie-accept-");
        wait_until(Duration::from_secs(10), || accepting() == number("node", "cluster"));
        assert_eq!(accepting(), number("node", "cluster"), "{name}: accepting instances");
        let (deliver, at_least) = (threads(pid, "hie-deliver"), number("node", "delivery_threads"));
        // Up to four more come and go for what blocks.
        assert!((at_least..=at_least + 4).contains(&deliver), "{name}: {deliver} threads deliver");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let line = limits.lines().find(|l| l.starts_with("Max open files")).expect("open files");
        assert!(line.split_whitespace().skip(3).take(2).eq([files.to_string(), files.to_string()]), "{name}: {line}");
        assert!(node.log().contains("preset in force") && node.log().contains(name), "{}", node.log_tail(10));

        // The largest message: refused by its announced length, before anything of it is sent.
        let largest = tier["node"]["limits"]["max_body"].as_str().expect("a size").parse::<bytesize::ByteSize>().expect("a size");
        let mut stream = TcpStream::connect(node.http).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        write!(stream, "POST /x HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", largest.as_u64() + 1).expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer[..], b"HTTP/1.1 413", "{name}");

        // The guide's limits, as the node itself tells them.
        let feed = node.get("/api/sse/stats").json();
        assert_eq!(feed["maxConnectionsPerResource"], tier["node"]["feed"]["max_connections_per_resource"], "{name}");
        let timeout = tier["node"]["feed"]["timeout"].as_str().and_then(|t| humantime::parse_duration(t).ok()).expect("a time");
        assert_eq!(feed["connectionTimeout"].as_u64().map(Duration::from_millis), Some(timeout), "{name}");
        let told = node.get("/api/admin/system-stats").json();
        assert_eq!(told["hie"]["feed"]["maxConnections"], tier["node"]["feed"]["max_connections"], "{name}");

        if number("mllp", "max_connections") <= 256 {
            at_its_limit_of_connections(&node, number("mllp", "max_connections"));
        }
        detected(name, &tier, &group);
    }
}

/// As many connections as the preset allows are served; the next is closed at once.
fn at_its_limit_of_connections(node: &Node, limit: usize) {
    let open: Vec<TcpStream> = (0..limit).map(|_| TcpStream::connect(node.mllp).expect("a connection")).collect();
    let counted = || {
        node.metrics()
            .lines()
            .any(|l| l.starts_with("hie_inbound_connections_open{") && l.contains("lis") && l.ends_with(&format!(" {limit}")))
    };
    assert!(wait_until(Duration::from_secs(10), counted), "{limit} connections\n{}", node.metrics());
    let mut next = TcpStream::connect(node.mllp).expect("a connection");
    next.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    assert!(matches!(next.read(&mut [0; 1]), Ok(0) | Err(_)), "closed");
    drop(open);
}

/// Inside the group the tier is found again, as far as this machine has its cores and memory.
fn detected(name: &str, tier: &Value, group: &Cgroup) {
    let words = group.wrapper(256);
    let inside = |args: &[&str]| {
        let output = Command::new(&words[0]).args(&words[1..]).args(args).output().expect("a command runs");
        (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let binary = harness::node::binary();
    let (_, told) = inside(&[binary.to_str().expect("UTF-8"), "preset", "detect", "--json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let outside = json(&["preset", "detect", "--json"]);
    let (cores, memory) = (tier["hardware"]["cores"]["min"].as_f64(), tier["hardware"]["memory_mib"]["min"].as_f64());
    if outside["cores"].as_f64() >= cores && outside["memoryMib"].as_f64() >= memory {
        assert_eq!(told["preset"], name, "{told}");
        assert_eq!(told["memoryLimitMib"], tier["system"]["cgroup"]["memory_mib"], "{told}");
    } else {
        println!("not run: detecting {name} inside its limits, because this machine is smaller");
        assert!(TIERS.iter().position(|t| *t == told["preset"]) < TIERS.iter().position(|t| *t == name), "{told}");
    }
    if name != "edge" {
        return;
    }
    // The group's limits are real: what needs more memory is killed, what wants more than a core waits.
    let (killed, _) = inside(&["sh", "-c", "head -c 600M /dev/zero | tail -c 600M | wc -c"]);
    let (fine, bytes) = inside(&["sh", "-c", "head -c 100M /dev/zero | tail -c 100M | wc -c"]);
    assert!(fine.success() && bytes.trim() == (100 << 20).to_string(), "{bytes}");
    let out_of_memory = group.read("memory.failcnt").or_else(|| group.read("memory.events")).unwrap_or_default();
    assert!(out_of_memory.split_whitespace().any(|n| n.parse::<u64>().is_ok_and(|n| n > 0)), "{killed}: {out_of_memory}");
    // Four that want a core each, before all others of a machine that may be busy: some 100 ms in which they got one at most.
    let burn = "for n in 1 2 3 4; do (while :; do :; done) & done; wait";
    group.favour();
    let throttled = || {
        let _ = inside(&["timeout", "1", "sh", "-c", burn]);
        let stat = group.read("cpu.stat").unwrap_or_default();
        stat.lines().find_map(|l| l.strip_prefix("nr_throttled ")).and_then(|n| n.parse::<u64>().ok()) > Some(0)
    };
    assert!((0..10).any(|_| throttled()), "{:?}", group.read("cpu.stat"));
}

#[test]
fn auto_takes_the_preset_that_detect_names() {
    let detected = json(&["preset", "detect", "--json"])["preset"].as_str().expect("a name").to_owned();
    assert_eq!(text(&["preset", "detect"]).lines().next(), Some(detected.as_str()));
    let node = Builder::new().node("preset = \"auto\"").channel(all_to(&Receiver::willing())).start();
    assert_eq!(values(&node, &[])["feed.max_connections"].1, format!("preset {detected}"));
    let wanted = file(&detected)["node"]["node"]["cluster"].as_u64().expect("a number") as usize;
    assert!(wait_until(Duration::from_secs(10), || threads(node.pid(), "hie-accept-") == wanted), "{wanted} instances accept");
    assert_eq!(
        text(&["preset", "render", "auto", "--part", "env"]).lines().last(),
        Some(&*format!("HIE_NODE__PRESET={detected}"))
    );
}

// === in the eyes of systemd and the kernel ===

#[test]
fn systemd_the_kernel_and_pam_take_their_files() {
    for name in TIERS {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().to_str().expect("UTF-8");
        let written = text(&["preset", "render", name, "--out", out]);
        assert_eq!(written.lines().count(), 7, "{written}");
        assert!(written.lines().all(|path| Path::new(path).is_file()), "{written}");
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));

        // verify only warns of what it does not know.
        let units = dir.path().join("systemd/system");
        fs::write(units.join("hie.service"), "[Service]\nExecStart=/bin/true\n").expect("a unit");
        let verify = |path: &Path| {
            let output = Command::new("systemd-analyze")
                .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
                .arg("verify")
                .arg(path)
                .output();
            let output = output.expect("systemd-analyze is missing: apt-get install systemd");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (well, said) = verify(&units.join("hie.service"));
        assert!(well && !said.contains("50-preset.conf"), "{name}: {said}");
        let mut broken = read("systemd/system/hie.service.d/50-preset.conf");
        broken += "MemoryMost=1M\n";
        fs::write(units.join("hie.service.d/50-preset.conf"), broken).expect("a drop-in");
        assert!(verify(&units.join("hie.service")).1.contains("50-preset.conf"), "the check finds what systemd does not know");

        let tier = file(name);
        let sysctl = read("sysctl.d/50-hie.conf");
        let settings: Vec<_> =
            sysctl.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_once(" = ").expect("name = value")).collect();
        assert_eq!(settings.len(), tier["system"]["sysctl"].as_object().expect("settings").len());
        for (key, value) in &settings {
            assert_eq!(&tier["system"]["sysctl"][*key].to_string(), value);
            assert!(Path::new("/proc/sys").join(key.replace('.', "/")).is_file(), "the kernel knows {key}");
        }
        // Those of a network namespace are put into force in one, and read back.
        for key in ["net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_keepalive_time"] {
            let (_, value) = settings.iter().find(|(k, _)| k == &key).expect(key);
            let script = format!("echo {value} > /proc/sys/{0} && cat /proc/sys/{0}", key.replace('.', "/"));
            let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output().expect("unshare runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), *value, "{}", String::from_utf8_lossy(&output.stderr));
        }
        let files = tier["system"]["nofile"].to_string();
        let limits = read("security/limits.d/50-hie.conf");
        let lines: Vec<_> = limits.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(lines, [format!("* soft nofile {files}"), format!("* hard nofile {files}")]);
    }
}

#[test]
fn compose_takes_the_files_of_every_tier() {
    let program = parts::fetch("compose");
    for name in TIERS {
        let tier = file(name);
        let dir = tempfile::tempdir().expect("a folder");
        let own = dir.path().join("compose.yaml");
        fs::write(&own, "services:\n  hie:\n    image: hie\n").expect("a file");
        let preset = dir.path().join("preset.yaml");
        fs::write(&preset, text(&["preset", "render", name, "--part", "compose"])).expect("a file");
        let output =
            Command::new(&program).arg("-f").arg(own).arg("-f").arg(preset).args(["config", "--format", "json"]).output();
        let output = output.expect("docker-compose runs");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let merged: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let (service, system) = (&merged["services"]["hie"], &tier["system"]);
        let memory = system["cgroup"]["memory_mib"].as_u64().expect("a number") << 20;
        assert_eq!(service["mem_limit"], memory.to_string(), "{name}");
        let cpus = service["cpus"].as_f64().or_else(|| service["cpus"].as_str()?.parse().ok());
        assert_eq!(cpus, tier["vm"]["vcpu"].as_f64(), "{name}: what an engine of that machine takes");
        assert_eq!(service["pids_limit"], system["cgroup"]["tasks"], "{name}");
        assert_eq!(
            (&service["ulimits"]["nofile"]["soft"], &service["ulimits"]["nofile"]["hard"]),
            (&system["nofile"], &system["nofile"])
        );
        assert_eq!((&service["environment"]["HIE_NODE__PRESET"], &service["image"]), (&Value::from(name), &Value::from("hie")));
    }
}

// === in a real broker and a real Consul ===

#[test]
fn consul_loads_the_files_of_every_tier() {
    let binary = parts::fetch("consul");
    for name in TIERS {
        let tier = file(name);
        let consul = Consul::start(&binary, &text(&["preset", "render", name, "--part", "consul"]));
        let config = consul.get("/v1/agent/self").expect("an answer")["DebugConfig"].clone();
        let multiplier = tier["consul"]["raft_multiplier"].as_u64().expect("a number");
        // A second at multiplier 1.
        assert_eq!(config["ConsulRaftElectionTimeout"], format!("{multiplier}s"), "{name}");
        assert_eq!((&config["DNSUseCache"], &config["DNSCacheMaxAge"]), (&true.into(), &"10m0s".into()), "{name}");
        assert_eq!(config["HTTPMaxConnsPerClient"], tier["consul"]["http_max_conns_per_client"], "{name}");
        assert_eq!(config["RPCMaxConnsPerClient"], tier["consul"]["rpc_max_conns_per_client"], "{name}");
    }
}

fn rabbitmq_loads_the_files_of_every_tier(part: &str, release: &str) {
    let root = parts::fetch(part);
    for name in TIERS {
        let tier = &file(name)["rabbitmq"];
        let broker = Rabbitmq::start(&root, &text(&["preset", "render", name, "--part", "rabbitmq"]));
        let seen = broker.eval(
            "Get = fun(App, Key) -> {ok, V} = application:get_env(App, Key), V end, Tcp = Get(rabbit, tcp_listen_options), \
             {ok, Release} = application:get_key(rabbit, vsn), \
             [list_to_binary(Release), vm_memory_monitor:get_memory_limit(), rabbit_disk_monitor:get_disk_free_limit(), \
             Get(rabbit, connection_max), Get(rabbit, channel_max), Get(rabbit, heartbeat), Get(rabbit, consumer_timeout), \
             proplists:get_value(backlog, Tcp), Get(ra, wal_max_size_bytes)].",
        );
        let number = |key: &str| tier[key].as_u64().expect("a number");
        let mib = |key: &str| number(key) << 20;
        let wanted = [
            mib("memory_mib"),
            mib("disk_free_mib"),
            number("connection_max"),
            number("channel_max"),
            number("heartbeat_seconds"),
            number("consumer_timeout_minutes") * 60_000,
            number("backlog"),
            mib("wal_max_mib"),
        ];
        let found: Vec<_> = seen.trim_matches(['[', ']']).split(',').map(str::trim).collect();
        assert!(found[0].contains(release), "{seen}");
        assert_eq!(found[1..], wanted.map(|n| n.to_string()), "{name} in {part}\n{}", broker.log());
    }
}

#[test]
fn rabbitmq_3_10_loads_the_files_of_every_tier() {
    rabbitmq_loads_the_files_of_every_tier("rabbitmq-3.10", "3.10.");
}

#[test]
fn rabbitmq_4_loads_the_files_of_every_tier() {
    rabbitmq_loads_the_files_of_every_tier("rabbitmq-4", "4.");
}

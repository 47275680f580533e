//! The planner: the guide's formula and worked examples to the number, its warning signs at their thresholds, and a plan
//! that reads a running node.

mod harness;

use harness::channels::all_to;
use harness::{Builder, Load, Receiver, Via, node::binary, wait_until};
use hie::preset::{
    Machine, detect, find,
    plan::{Health, Live, Sign, Site, capacity, peak, signs::signs, utilization},
    planning, tiers,
};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::Duration;

fn hie(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIE_")) {
        command.env_remove(name);
    }
    command.arg("plan").args(args).output().expect("hie runs")
}

fn text(args: &[&str]) -> String {
    let output = hie(args);
    assert!(output.status.success(), "hie plan {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn plan(args: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(args);
    serde_json::from_str::<Value>(&text(&all)).expect("JSON")["plan"].clone()
}

fn site(patients: &str, doctors: &str) -> Value {
    plan(&["--patients-per-day", patients, "--doctors", doctors])
}

// === the guide's worked examples ===

#[test]
fn the_formula_gives_the_numbers_of_the_seed() {
    // 10,000 patients and 30 doctors: 300 + 60.
    assert_eq!(peak(10_000, 30), 360);
    assert_eq!(site("10000", "30")["peakConnections"], 360);
    // The table's rows begin and end where the formula says, without doctors, or at most 15 of them above.
    for (patients, connections) in [(1_000, 30), (5_000, 150), (10_000, 300), (20_000, 600), (50_000, 1_500)] {
        assert_eq!(peak(patients, 0), connections);
    }
    assert_eq!((peak(0, 0), peak(1, 0), peak(700, 0), peak(0, 1)), (0, 1, 21, 2));
    // 85 connections, 100 for each of 15 resources.
    assert_eq!((capacity(100, 15), utilization(85, 100, 15)), (1_500, 5.7));
    assert_eq!(utilization(1_050, 100, 15), 70.0);
    assert_eq!(utilization(5, 100, 0), 0.0, "nothing is open: nothing is used");
    // Normal peak 200: plan for 400, with 200 per resource.
    let tip = site("5000", "25");
    assert_eq!(
        (&tip["peakConnections"], &tip["plannedConnections"], &tip["maxConnectionsPerResource"]),
        (&json!(200), &json!(400), &json!(200))
    );
    assert_eq!((&tip["holdsPlanned"], &tip["preset"]), (&json!(true), &json!("medium-hospital")));
}

#[test]
fn the_recommended_limit_is_the_one_of_the_seeds_table() {
    // Step 3: for 5,000, 10,000, 20,000 and 50,000 patients a day; and step 2's first row.
    let rows = [
        ("1000", 50, "edge"),
        ("5000", 100, "small-clinic"),
        ("10000", 200, "medium-hospital"),
        ("20000", 300, "large-hospital"),
        ("50000", 500, "hospital-network"),
    ];
    for (patients, per_resource, preset) in rows {
        let plan = site(patients, "0");
        assert_eq!((&plan["maxConnectionsPerResource"], &plan["preset"]), (&json!(per_resource), &json!(preset)), "{patients}");
        assert_eq!(plan["connectionTimeoutMinutes"], 30);
        assert_eq!(plan["holdsPlanned"], true, "{patients}: twice the peak fits");
    }
    // One patient, or one doctor, more is the next tier.
    assert_eq!(site("5001", "0")["preset"], "medium-hospital");
    let worked = site("10000", "30");
    assert_eq!((&worked["preset"], &worked["maxConnectionsPerResource"]), (&json!("large-hospital"), &json!(300)));
    let reasons = worked["reasons"].to_string();
    assert!(reasons.contains("a peak of 360 connections: large-hospital (up to 600)"), "{reasons}");
    // Growth counts for patients and doctors.
    let grown = plan(&["--patients-per-day", "4000", "--doctors", "10", "--growth", "50"]);
    assert_eq!((&grown["patientsPerDay"], &grown["doctors"], &grown["peakConnections"]), (&json!(6000), &json!(15), &json!(210)));
}

#[test]
fn several_servers_from_20000_patients_and_necessarily_above_50000() {
    assert_eq!(site("19999", "0")["horizontal"], Value::Null);
    let consider = &site("20000", "0")["horizontal"];
    assert_eq!((&consider["needed"], &consider["servers"]), (&json!(false), &json!(2)));
    assert_eq!(site("50000", "0")["horizontal"]["needed"], false);
    let needed = site("50001", "0");
    assert_eq!((&needed["horizontal"]["needed"], &needed["horizontal"]["servers"]), (&json!(true), &json!(3)));
    assert_eq!(needed["preset"], "hospital-network");
    let many = site("1000", "6000");
    assert_eq!(
        (&many["holdsPlanned"], &many["horizontal"]["needed"]),
        (&json!(false), &json!(true)),
        "24,060 readers are too many for one"
    );
    assert!(text(&["--patients-per-day", "60000", "--doctors", "5"]).contains("several servers   NEEDED: 3"));
}

#[test]
fn the_roadmap_is_the_seeds() {
    let plan = site("7000", "10");
    let rows = plan["roadmap"].as_array().expect("rows");
    // Phase, patients a day, cores, GB of memory, connections per resource, USD, when.
    let phases = [
        (1, (500, 5_000), (2, 4), 4, (100, 100), (20, 50), "now"),
        (2, (5_000, 10_000), (4, 8), 8, (200, 200), (80, 150), "when utilization > 70%"),
        (3, (10_000, 20_000), (8, 16), 16, (300, 300), (150, 300), "when utilization > 70%"),
        (4, (20_000, 50_000), (16, 32), 32, (300, 500), (300, 600), "when single server limits reached"),
    ];
    let range = |(min, max): (u64, u64)| json!({ "min": min, "max": max });
    for (phase, patients, cores, memory, per_resource, cost, when) in phases {
        let row = rows.iter().find(|row| row["phase"] == phase).expect("a phase");
        assert_eq!(row["patientsPerDay"], range(patients), "{phase}");
        assert_eq!((&row["cores"], &row["memoryMib"]), (&range(cores), &json!(memory * 1024)), "{phase}");
        assert_eq!((&row["connectionsPerResource"], &row["costUsdPerMonth"]), (&range(per_resource), &range(cost)), "{phase}");
        assert_eq!((&row["when"], &row["here"]), (&json!(when), &json!(phase == 2)), "{phase}");
    }
    assert_eq!(rows[3]["title"], "Large Hospital");
    assert_eq!(rows[4]["title"], "Consider Horizontal Scaling");
}

#[test]
fn limits_are_raised_step_by_step() {
    let steps = |now: Option<u64>, patients_per_day| {
        let site = Site { patients_per_day, connections_per_resource: now, ..Site::default() };
        hie::preset::plan::plan(&site).steps.iter().map(|s| (s.week, s.connections_per_resource)).collect::<Vec<_>>()
    };
    // The guide: 100 in week 1, 150 in week 2, 200 in week 3.
    assert_eq!(steps(Some(100), 10_000), [(1, 100), (2, 150), (3, 200)]);
    assert_eq!(steps(Some(120), 10_000), [(1, 120), (2, 170), (3, 200)]);
    assert_eq!(steps(None, 10_000), [(1, 200)]);
    assert_eq!(steps(Some(500), 10_000), [(1, 200)], "down at once");
    let shown = text(&["--patients-per-day", "900", "--doctors", "1"]);
    assert!(shown.contains("month 7+: 100 USD a month (8 cores, 8192 MiB)"), "{shown}");
}

#[test]
fn the_numbers_of_planning_are_the_seeds() {
    let numbers = planning();
    let limits = &numbers.thresholds;
    assert_eq!((numbers.peak.connections_per_patient, numbers.peak.connections_per_doctor, numbers.headroom), (0.03, 2, 2));
    assert_eq!((limits.utilization_percent, limits.memory_percent, limits.cpu_percent), (70.0, 80.0, 70.0));
    assert_eq!((limits.p95_ms, limits.p99_ms), (500.0, 1_000.0));
    assert_eq!((numbers.horizontal_from_patients_per_day, numbers.vertical_up_to_patients_per_day), (20_000, 50_000));
    let timeouts = &numbers.timeout_minutes;
    assert_eq!((timeouts.short, timeouts.balanced, timeouts.long), (15, 30, 60));
    assert!(tiers().iter().all(|tier| tier.timeout_minutes() == timeouts.balanced));
    // $20 for 2 cores and 2 GB, $50 for 4 and 4, $100 for 8 and 8.
    let spending: Vec<_> =
        numbers.spending.iter().map(|s| (s.from_month, s.to_month, s.usd_per_month, s.cores, s.memory_mib)).collect();
    assert_eq!(spending, [(1, Some(3), 20, 2, 2048), (4, Some(6), 50, 4, 4096), (7, None, 100, 8, 8192)]);
    assert_eq!((numbers.observe.before_days, numbers.observe.after_hours.min, numbers.observe.after_hours.max), (7, 24, 48));
}

#[test]
fn the_checklist_has_every_item_with_this_sites_numbers() {
    let plan = site("10000", "30");
    let list = &plan["checklist"];
    let count = |part: &str| list[part].as_array().map_or(0, Vec::len);
    assert_eq!((count("before"), count("during"), count("after")), (6, 6, 7), "as many as the guide has");
    let all = list.to_string();
    for expected in [
        "360 connections",
        "720 planned",
        "300 connections per resource",
        "8 to 16 cores",
        "65536 open files",
        "24-48 hours",
        "--patients-per-day 10000 --doctors 30",
        "below 70 % of 5000 connections",
    ] {
        assert!(all.contains(expected), "{expected} in {all}");
    }
    // The commands of ours that it names exist, with their options.
    let commands: Vec<String> = ["before", "during", "after"]
        .iter()
        .flat_map(|part| list[part].as_array().expect("items").clone())
        .filter_map(|item| item["command"].as_str().map(str::to_owned))
        .collect();
    let mut seen = 0;
    for words in commands.iter().filter(|c| c.starts_with("hie ")).map(|c| c.split_whitespace().skip(1).collect::<Vec<_>>()) {
        let verbs: Vec<_> = words
            .iter()
            .copied()
            .take_while(|w| w.chars().all(char::is_lowercase))
            .take(if words[0] == "preset" { 2 } else { 1 })
            .collect();
        let help = Command::new(binary()).args(&verbs).arg("--help").output().expect("hie runs");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for option in words.iter().filter(|w| w.starts_with("--")) {
            assert!(help.contains(option), "hie {verbs:?} has no {option}");
        }
        seen += 1;
    }
    assert!(seen >= 8, "{commands:?}");
    let shown = text(&["--patients-per-day", "10000", "--doctors", "30"]);
    assert_eq!(shown.matches("[ ]").count(), 19);
}

#[test]
fn memory_disk_and_retention_follow_from_sizes() {
    let plan_of = |more: &[&str]| plan(&[&["--patients-per-day", "2000", "--doctors", "10"], more].concat());
    let given = plan_of(&["--messages-per-patient", "10", "--message-size", "1 KiB"]);
    let disk = &given["disk"];
    assert_eq!((&given["messagesPerDay"], &given["messageBytes"]), (&json!(20_000), &json!(1024)));
    // Small bodies are stored as they are: 620 + 1024.
    assert_eq!((disk["bytesPerMessage"].as_f64(), disk["bytesPerDay"].as_f64()), (Some(1_644.0), Some(32_880_000.0)));
    assert_eq!((disk["retentionDays"].as_f64(), disk["bytes"].as_f64()), (Some(30.0), Some(986_400_000.0)));
    // 30 GiB.
    assert!((disk["retentionPossibleDays"].as_f64().expect("days") - 979.7).abs() < 0.1, "{disk}");
    // Twice the peak of 80 to the live feed, at 8 KiB.
    let feed = &given["memory"]["parts"].as_array().expect("parts")[1];
    assert_eq!((feed["what"].as_str(), feed["plannedMib"].as_f64()), (Some("live feed"), Some(1.25)));
    let large = plan_of(&["--message-size", "1 MiB", "--retention", "90days"]);
    assert_eq!(large["disk"]["retentionDays"], 90.0);
    assert!(large["reasons"].to_string().contains("disk: ledger.max_size of the preset holds"), "{}", large["reasons"]);
    // A node of any tier with all its limits reached stays within its group.
    for tier in tiers() {
        let most = tier.patients_per_day.max.to_string();
        let plan = site(&most, "0");
        assert_eq!(plan["preset"], tier.name);
        let (limits, allowed) = (plan["memory"]["atLimitsMib"].as_f64(), plan["memory"]["allowedMib"].as_f64());
        assert!(limits < allowed.map(|mib| mib * 0.8), "{}: {limits:?} of {allowed:?}", tier.name);
    }
}

#[test]
fn detection_takes_the_largest_tier_that_fits() {
    let found = |cores: f64, memory_mib| detect(Machine { cores, memory_mib }).name.as_str();
    for (cores, memory, name) in [
        (0.5, 128, "edge"),
        (1.0, 512, "edge"),
        (4.0, 1024, "edge"),
        (1.9, 65_536, "edge"),
        (2.0, 2048, "small-clinic"),
        (2.0, 1970, "small-clinic"),
        (2.0, 1700, "edge"),
        (4.0, 4096, "small-clinic"),
        (4.0, 8192, "medium-hospital"),
        (8.0, 16_384, "large-hospital"),
        (8.0, 15_900, "large-hospital"),
        (16.0, 32_768, "hospital-network"),
        (128.0, 1 << 20, "hospital-network"),
        (128.0, 2048, "small-clinic"),
    ] {
        assert_eq!(found(cores, memory), name, "{cores} cores, {memory} MiB");
    }
    for tier in tiers() {
        assert_eq!(found(tier.vm.vcpu as f64, tier.vm.memory_mib), tier.name, "the bundle's machine of the tier");
        assert_eq!(
            found(tier.system.cgroup.cpu_percent as f64 / 100.0, tier.system.cgroup.memory_mib),
            tier.name,
            "inside its own limits"
        );
    }
}

// === warning signs ===

const MIB: u64 = 1 << 20;

fn sign<'a>(signs: &'a [Sign], name: &str) -> &'a Sign {
    signs.iter().find(|s| s.sign == name).unwrap_or_else(|| panic!("no sign {name}"))
}

#[test]
fn the_signs_of_the_seed_warn_at_their_thresholds() {
    let tier = find("medium-hospital").ok();
    // The dashboard that the guide shows as healthy.
    let healthy = Live {
        connections: Some(85),
        resources: Some(15),
        max_connections_per_resource: Some(100),
        memory_bytes: Some(450 * MIB),
        memory_limit_bytes: Some(2048 * MIB),
        cpu_average_percent: Some(15.0),
        cpu_peak_percent: Some(45.0),
        p50_ms: Some(45.0),
        p95_ms: Some(120.0),
        p99_ms: Some(250.0),
        limit_warnings: Some(0),
        ..Live::default()
    };
    let told = signs(&healthy, tier);
    assert_eq!(told.len(), 6);
    assert!(told.iter().all(|s| s.health == Health::Healthy && s.action.is_empty()), "{told:?}");
    assert_eq!(sign(&told, "SSE utilization").seen, "5.7 % (85 of 1500 connections)");
    assert_eq!(sign(&told, "memory usage").seen, "22 % (450 of 2048 MiB)");
    // Its warning signs: 1,050 of 1,500; 6.5 of 8 GB; 75 % with a peak of 95; a limit reached; 800 and 2,000 ms.
    let ill = Live {
        connections: Some(1_050),
        resources: Some(15),
        max_connections_per_resource: Some(100),
        memory_bytes: Some(6656 * MIB),
        memory_limit_bytes: Some(8192 * MIB),
        cpu_average_percent: Some(75.0),
        cpu_peak_percent: Some(95.0),
        p95_ms: Some(800.0),
        p99_ms: Some(2_000.0),
        limit_warnings: Some(1),
        ..Live::default()
    };
    let told = signs(&ill, tier);
    assert!(told.iter().all(|s| s.health == Health::Warning && !s.action.is_empty()), "{told:?}");
    assert_eq!(sign(&told, "SSE utilization").seen, "70 % (1050 of 1500 connections)");
    assert_eq!(
        sign(&told, "SSE utilization").action,
        "increase feed.max_connections_per_resource from 100 to 150, later to 200 (medium-hospital)"
    );
    assert!(sign(&told, "memory usage").seen.starts_with("81.3 %"));
    assert_eq!(
        sign(&told, "memory usage").action,
        "upgrade server RAM to 16384 MiB (large-hospital); until then shorten feed.timeout to 15m"
    );
    assert!(sign(&told, "CPU usage, sustained").action.contains("upgrade server CPU cores to 8"));
    let below = |s: &str| sign(&told, s).healthy_below.clone();
    assert_eq!(
        [below("SSE utilization"), below("memory usage"), below("CPU usage, sustained"), below("P95"), below("P99")],
        ["70 %", "80 %", "70 %", "500 ms", "1000 ms"]
    );
    // Just below is healthy.
    let near = Live {
        connections: Some(1_049),
        memory_bytes: Some(6500 * MIB),
        cpu_average_percent: Some(69.9),
        p95_ms: Some(499.0),
        p99_ms: Some(999.0),
        limit_warnings: Some(0),
        ..ill
    };
    assert!(signs(&near, tier).iter().all(|s| s.health == Health::Healthy), "{:?}", signs(&near, tier));
    assert!(signs(&Live::default(), None).iter().all(|s| s.health == Health::Unknown));
}

#[test]
fn a_nodes_answers_are_read_with_the_seeds_field_names() {
    let stats = json!({
        "sse": { "totalConnections": 85, "resourceCount": 15, "maxConnectionsPerResource": 100, "connectionTimeout": 1_800_000, "utilizationPercent": "5.67", "capacityRemaining": 1415 },
        "hie": { "feed": { "maxConnections": 100 }, "memory": { "used": 471859200, "total": 2147483648_u64 }, "cpu": { "averagePercent": 15, "peakPercent": 45 } },
    });
    let status = json!({ "memory": 471859200, "ledger": { "bytes": 500_000, "transactions": 250 } });
    let mut metrics = String::from(
        "# TYPE x counter\nhie_uptime_seconds 86400\nhie_messages_accepted_total{channel=\"a\"} 150\nhie_messages_accepted_total{channel=\"b\"} 100\nhie_messages_accepted_totals 7\n",
    );
    metrics += "hie_accept_seconds_bucket{channel=\"a\",le=\"0.01\"} 90\nhie_accept_seconds_bucket{channel=\"a\",le=\"0.1\"} 98\nhie_accept_seconds_bucket{channel=\"a\",le=\"+Inf\"} 100\n";
    metrics += "hie_inbound_connections_cut_total{listener=\"x\",reason=\"limit\"} 3\nhie_inbound_connections_cut_total{listener=\"x\",reason=\"tls\"} 9\n";
    let live = Live::read(&status, &metrics, Some(&stats));
    assert_eq!(
        (live.connections, live.resources, live.max_connections_per_resource, live.connection_timeout_minutes),
        (Some(85), Some(15), Some(100), Some(30.0))
    );
    assert_eq!((live.memory_bytes, live.memory_limit_bytes), (Some(450 * MIB), Some(2048 * MIB)));
    assert_eq!((live.cpu_average_percent, live.cpu_peak_percent, live.limit_warnings), (Some(15.0), Some(45.0), Some(3)));
    assert_eq!((live.p50_ms, live.p95_ms, live.p99_ms), (Some(10.0), Some(100.0), Some(100.0)));
    assert_eq!((live.messages_per_day, live.stored_bytes_per_message), (Some(250.0), Some(2000.0)));
    // All places together; and a node that tells quantiles by channel is believed, its slowest channel counting.
    let told = signs(&live, None);
    assert_eq!((sign(&told, "SSE connections in total").health, live.max_connections), (Health::Warning, Some(100)));
    let mut stats = stats;
    stats["hie"]["channels"] = json!([{ "answered": { "p95": 7, "p99": null } }, { "answered": { "p95": 800.5, "p99": 2000 } }]);
    let live = Live::read(&status, &metrics, Some(&stats));
    assert_eq!((live.p50_ms, live.p95_ms, live.p99_ms), (Some(10.0), Some(800.5), Some(2000.0)));
    // Nothing, and nonsense, is no reason to fail.
    assert_eq!(Live::read(&Value::Null, "", None), Live::default());
    let _ = Live::read(
        &json!([1]),
        "hie_uptime_seconds NaN\nhie_accept_seconds_bucket{le=\"x\"} 1\nhie_accept_seconds_bucket",
        Some(&json!({ "sse": 5 })),
    );
}

// === a running node ===

#[test]
fn a_plan_reads_a_running_node() {
    let receiver = Receiver::willing();
    let node = Builder::new().node("preset = \"small-clinic\"").channel(all_to(&receiver)).start();
    let sent = Load { connections: 4, count: Some(50), ..Load::new(Via::Mllp(node.mllp)) }.run(Duration::from_secs(30));
    assert_eq!(sent.acknowledged.len(), 200);
    let folded = || node.get("/status").json()["ledger"]["transactions"].as_u64() >= Some(200);
    assert!(wait_until(Duration::from_secs(20), folded), "{}", node.get("/status").text());
    let (url, config) = (format!("http://{}", node.admin), node.config_file());
    let from = ["--from", &url, "--config", config.to_str().expect("UTF-8")];
    let told: Value = serde_json::from_str(&text(&[&["--json"], &from[..]].concat())).expect("JSON");
    assert_eq!(told.get("plan"), None, "only what the node should change");
    let live = &told["node"]["live"];
    assert!(live["memoryBytes"].as_u64() > Some(MIB) && live["p95Ms"].as_f64().is_some(), "{live}");
    assert!(live["storedBytesPerMessage"].as_f64() > Some(100.0), "{live}");
    assert!(live["messagesPerDay"].is_null(), "a node that has just started tells nothing about a day: {live}");
    let signs = told["node"]["signs"].as_array().expect("signs");
    assert!(signs.iter().any(|s| s["sign"] == "P99" && s["health"] != "unknown"), "{signs:?}");
    // With a site, its sizes and numbers go into the plan.
    let site = plan(&[&["--patients-per-day", "100000", "--doctors", "1"], &from[..]].concat());
    assert_eq!(site["disk"]["bytesPerMessage"], live["storedBytesPerMessage"]);
    assert!(site["checklist"].to_string().contains(&url));
    let shown = text(&from);
    assert!(shown.contains("SSE utilization") && shown.contains("HEALTHY BELOW"), "{shown}");
}

#[test]
fn wrong_usage_is_told() {
    for (args, code, expected) in [
        (&[][..], 64, "--patients-per-day"),
        (&["--patients-per-day", "100"], 64, "--doctors"),
        (&["--patients-per-day", "0", "--doctors", "1"], 64, "0"),
        (&["--patients-per-day", "-5", "--doctors", "1"], 64, "-5"),
        (&["--patients-per-day", "5", "--doctors", "1", "--growth", "x"], 64, "a number"),
        (&["--from", "http://127.0.0.1:1", "--token-file", "/does/not/exist"], 69, "/does/not/exist"),
    ] {
        let output = hie(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    // The largest numbers are no reason to fail.
    site("1000000000", "1000000000");
}

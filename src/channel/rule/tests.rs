use super::*;
use crate::message::{HttpHead, Protocol, envelope::HeaderBytes, fhir::Fhir, hl7::Message};

const ADT: &[u8] =
    b"MSH|^~\\&|LAB|HOSP|B|C|2024||ADT^A01^ADT_A01|42|P|2.5.1\rPID|1||7^^^H~8||M\xC3\xBCller^J\\T\\J\rOBX|1|NM|a||5\r";

fn http() -> HttpHead {
    let header = |n: &str, v: &[u8]| (n.to_owned(), HeaderBytes(v.to_vec()));
    HttpHead {
        method: "POST".into(),
        path: "/fhir/Patient".into(),
        query: "a=1".into(),
        headers: vec![header("x-site", b"north-3"), header("x-raw", b"\xFF")],
    }
}

/// Runs `test` with a few messages of different kinds.
fn with_subjects(mut test: impl FnMut(&str, &Subject<'_>)) {
    let message = Message::new(ADT).unwrap();
    let http = http();
    let fhir = Fhir { resource_type: "Patient".into(), id: Some("p1".into()), patients: vec!["p1".into(), "7".into()] };
    let hl7 = Subject {
        listener: "adt",
        client: "lab",
        remote: "10.0.0.1:99",
        hl7: Some(&message),
        kind: "ADT^A01",
        control_id: "42",
        size: 180,
        ..Subject::EMPTY
    };
    let rest = Subject {
        protocol: Protocol::Http,
        client: "ehr",
        http: Some(&http),
        fhir: Some(&fhir),
        content_type: "application/fhir+json",
        kind: "Patient",
        control_id: "p1",
        size: 5000,
        ..Subject::EMPTY
    };
    test("hl7", &hl7);
    test("fhir", &rest);
    test("empty", &Subject { protocol: Protocol::File, ..Subject::EMPTY });
}

fn outcomes(rule: &str) -> Vec<Result<bool, EvalError>> {
    let compiled = Rule::compile(rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
    let mut all = vec![];
    with_subjects(|_, subject| all.push(compiled.matches(subject)));
    all
}

fn refused(rule: &str) -> (usize, usize, String) {
    match Rule::compile(rule) {
        Ok(_) => panic!("{rule} was taken"),
        Err(e) => (e.line, e.column, e.message),
    }
}

#[test]
fn rules_hold_where_they_should() {
    let (yes, no) = (Ok(true), Ok(false));
    for (rule, expected) in [
        ("true", [yes, yes, yes]),
        ("protocol == \"mllp\"", [yes, no, no]),
        ("protocol == 'mllp' && hl7(\"MSH-9.1\") == \"ADT\"", [yes, no, no]),
        ("hl7(\"PID-5.1\") == \"Müller\" && hl7('PID-5.2') == 'J&J'", [yes, no, no]),
        ("hl7(\"PID-3[2].1\") == \"8\" || resource == \"Patient\"", [yes, yes, no]),
        ("!(kind in [\"ADT^A01\", \"ADT^A08\"])", [no, yes, yes]),
        ("\"7\" in patients()", [yes, yes, no]),
        ("size > 1000 && size <= 5000", [no, yes, no]),
        ("method == \"POST\" && path.startsWith(\"/fhir/\") && query.contains(\"a=\")", [no, yes, no]),
        ("header(\"X-Site\").matches(\"^north-[0-9]+$\")", [no, yes, no]),
        ("header(\"x-raw\") == \"\"", [yes, yes, yes]),
        ("content_type.endsWith(\"json\")", [no, yes, no]),
        ("matches(client, \"^(lab|ehr)$\")", [yes, yes, no]),
        ("listener != \"adt\" || remote.startsWith(\"10.\")", [yes, yes, yes]),
        ("control_id == \"42\"", [yes, no, no]),
        ("hl7(\"MSH-9\") == hl7(\"MSH-9.1\") + \"^\" + hl7(\"MSH-9.2\") + \"^ADT_A01\"", [yes, no, no]),
        ("patients().exists(p, p.startsWith(\"p\"))", [no, yes, no]),
        ("patients().exists(client, client == \"7\")", [yes, yes, no]),
        ("patients().all(p, p.matches(\"^[0-9]+$\"))", [yes, no, yes]),
        ("size(patients()) == 2", [yes, yes, no]),
        ("kind.lowerAscii().startsWith(\"adt\") ? client == \"lab\" : size > 1", [yes, yes, no]),
        ("[\"lab\", \"x\"].exists(c, c == client)", [yes, no, no]),
        ("kind < \"B\"", [yes, no, yes]),
        ("hl7(\"OBX\") != \"\"", [yes, no, no]),
    ] {
        assert_eq!(outcomes(rule), expected, "{rule}");
    }
}

#[test]
fn what_has_no_value_does_not_hold_unless_the_other_side_decides() {
    let (yes, no, none) = (Ok(true), Ok(false), Err(EvalError::NoValue));
    for (rule, expected) in [
        ("int(hl7(\"OBX-5\")) > 3", [yes, none, none]),
        ("int(hl7(\"OBX-5\")) > 3 || true", [yes, yes, yes]),
        ("int(hl7(\"OBX-5\")) > 3 && client == \"lab\"", [yes, no, no]),
        ("client == \"lab\" && int(hl7(\"OBX-5\")) > 3", [yes, no, no]),
        ("patients()[1] == \"7\"", [no, yes, none]),
        ("100 / size(patients()) == 50", [yes, yes, none]),
    ] {
        assert_eq!(outcomes(rule), expected, "{rule}");
    }
}

#[test]
fn errors_name_place_and_remedy() {
    for (rule, line, column, part) in [
        ("", 1, 1, "empty"),
        ("protocol ==", 1, 12, "syntax"),
        ("clint == \"x\"", 1, 1, "did you mean `client`?"),
        ("true &&\n  clint == \"x\"", 2, 3, "did you mean `client`?"),
        ("\"é\" == client && clint == \"x\"", 1, 18, "did you mean `client`?"),
        ("hl8(\"PID-3\") == \"x\"", 1, 4, "did you mean `hl7`?"),
        ("client.startWith(\"x\")", 1, 17, "did you mean `startsWith`?"),
        ("true && hl7(\"PID3\") == \"x\"", 1, 13, "is no path"),
        ("hl7(client) == \"x\"", 1, 5, "written out"),
        ("hl7() == \"x\"", 1, 4, "one argument"),
        ("header(\"a b\") == \"x\"", 1, 8, "cannot be the name"),
        ("client.matches(\"(\")", 1, 16, "unclosed group"),
        ("client.matches(kind)", 1, 15, "written out"),
        ("client.matches(\"(a{1000}){1000}\")", 1, 16, "size limit"),
        ("size == \"5\"", 1, 6, "never equal"),
        ("true && size > \"5\"", 1, 14, "overload"),
        ("client", 1, 1, "true or false"),
        ("patients", 1, 1, "is a function"),
        ("message.type == \"x\"", 1, 8, "nothing here has fields"),
        ("has(message.type)", 1, 4, "nothing here has fields"),
        ("{\"a\": true}[client]", 1, 1, "maps"),
        ("client.split(\",\").exists(c, c == \"x\")", 1, 25, "patients() or a list"),
        ("header(\"a\").replace(\"\", \"x\") == \"\"", 1, 20, "unknown function"),
    ] {
        let (l, c, message) = refused(rule);
        assert!(message.contains(part), "{rule}: {message}");
        assert_eq!((l, c), (line, column), "{rule}: {message}");
    }
}

#[test]
fn work_is_bounded() {
    let tens = format!("[{}]", ["1"; 60].join(","));
    let nested = format!("{tens}.exists(a, {tens}.exists(b, {tens}.exists(c, a + b + c == 9)))");
    assert!(refused(&nested).2.contains("too long"));
    assert!(Rule::compile(&format!("{tens}.exists(a, {tens}.exists(b, a + b == 9))")).is_err());
    assert!(Rule::compile(&format!("{tens}.exists(a, patients().exists(b, string(a) == b))")).is_ok());
    assert!(refused(&format!("client == \"{}\"", "x".repeat(MAX_TEXT))).2.contains("at most 4096 bytes"));
}

#[test]
fn deep_expressions_are_refused_on_a_small_stack() {
    let deep = |text: String| text.chars().take(MAX_TEXT).collect::<String>();
    let all = [
        deep(format!("{}true{}", "(".repeat(2000), ")".repeat(2000))),
        deep(format!("{}true", "!".repeat(4000))),
        deep(format!("0 < {}1", "-".repeat(4000))),
        deep(format!("0 < 1{}", "+1".repeat(2000))),
        deep(format!("true{}", "==true".repeat(600))),
        deep(format!("{}1{}", "[".repeat(2000), "]".repeat(2000))),
        deep(format!("client{}", ".trim()".repeat(580))),
        deep(format!("client{}", "[0]".repeat(1300))),
        deep(format!("{}true", "true?true:".repeat(400))),
        deep(format!("{}true", "true||".repeat(600))),
        deep(format!("{}true", "true&&".repeat(600))),
        deep(format!("{}true{}", "[1].all(x,".repeat(350), ")".repeat(350))),
        deep("a.".repeat(2000)),
        deep("\"".repeat(4001)),
        deep("{".repeat(4000)),
        deep("a(".repeat(2000)),
    ];
    // A thread's stack, as the management API has it.
    let run = move || all.iter().map(|text| Rule::compile(text).is_ok()).collect::<Vec<_>>();
    let taken = std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
    assert!(taken.len() == 16);
}

/// Every rule that the fast path takes, and combinations of them, must give what the interpreter gives.
#[test]
fn the_fast_path_agrees_with_the_interpreter() {
    let texts = [
        "client",
        "kind",
        "hl7(\"MSH-9.1\")",
        "hl7(\"PID-5.1\")",
        "header(\"x-site\")",
        "\"ADT\"",
        "\"\"",
        "\"lab\"",
        "resource",
    ];
    let mut atoms: Vec<String> =
        vec!["true".into(), "false".into(), "int(hl7(\"OBX-5\")) == 5".into(), "patients()[0] == \"7\"".into()];
    for a in texts {
        for b in texts {
            for form in [
                "{a} == {b}",
                "{a} != {b}",
                "{a}.startsWith({b})",
                "{a}.endsWith({b})",
                "{a}.contains({b})",
                "{a} in [{b}, \"ADT\"]",
            ] {
                atoms.push(form.replace("{a}", a).replace("{b}", b));
            }
        }
        atoms.push(format!("{a}.matches(\"^[a-z]+$\")"));
        atoms.push(format!("{a} in patients()"));
        for op in ["==", "!=", "<", "<=", ">", ">="] {
            atoms.push(format!("size {op} {}", 180));
        }
    }
    // Those that may have no value, as often as the others.
    for _ in 0..100 {
        atoms.push(atoms[2].clone());
        atoms.push(atoms[3].clone());
    }
    let mut rules = atoms.clone();
    // A fixed walk through pairs and triples, the same in every run.
    let mut state = 12345u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..400 {
        let (a, b, c) = (next(atoms.len()), next(atoms.len()), next(atoms.len()));
        let (x, y) = (["&&", "||"][next(2)], ["&&", "||"][next(2)]);
        let not = ["", "!"][next(2)];
        rules.push(format!("{not}({}) {x} ({} {y} {not}({}))", atoms[a], atoms[b], atoms[c]));
    }
    let (mut held, mut failed) = (0, 0);
    for rule in &rules {
        let compiled = Rule::compile(rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
        with_subjects(|name, subject| {
            let fast = compiled.matches(subject);
            assert_eq!(fast, Rule::interpret(rule, subject), "{rule} on {name}");
            held += usize::from(fast == Ok(true));
            failed += usize::from(fast.is_err());
        });
    }
    assert!(rules.len() > 900 && held > 300 && failed > 10, "{} rules, {held} held, {failed} failed", rules.len());
}

#[test]
fn what_most_rules_are_made_of_is_compiled() {
    for rule in [
        "protocol == \"mllp\" && hl7(\"MSH-9.1\") == \"ADT\"",
        "!(client in [\"a\", \"b\"]) || header(\"x\").matches(\"y\") || size >= 3 || \"1\" in patients()",
    ] {
        assert!(Rule::compile(rule).unwrap().is_fast(), "{rule}");
    }
    assert!(!Rule::compile("size + 1 == 2").unwrap().is_fast());
}

#[test]
fn values_are_read_up_to_the_limit() {
    let long = format!("MSH|^~\\&|A\rOBX|1|{}\u{e9}{}|\r", "x".repeat(MAX_VALUE - 1), "y".repeat(100));
    let message = Message::new(long.as_bytes()).unwrap();
    let subject = Subject { hl7: Some(&message), ..Subject::EMPTY };
    let holds = |rule: &str| Rule::compile(rule).unwrap().matches(&subject);
    assert_eq!(holds("hl7(\"OBX-2\").contains(\"y\")"), Ok(false));
    assert_eq!(holds("hl7(\"OBX-2\").contains(\"x\") && size(hl7(\"OBX-2\")) <= 65536"), Ok(true));
}

/// Not a measurement, only a guard against a slip by orders of magnitude.
#[test]
fn a_typical_rule_takes_microseconds_at_most() {
    let rule =
        Rule::compile("protocol == \"mllp\" && hl7(\"MSH-9.1\") == \"ADT\" && hl7(\"MSH-4\") in [\"X\", \"HOSP\"]").unwrap();
    with_subjects(|_, subject| {
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            std::hint::black_box(rule.matches(std::hint::black_box(subject))).unwrap();
        }
        let each = start.elapsed() / 1000;
        assert!(each.as_micros() < 200, "{each:?}");
    });
}

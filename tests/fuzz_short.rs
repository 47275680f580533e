//! A short fuzz of MLLP framing, HL7 and FHIR reading, the PROXY header and the configuration on stable Rust: samples are
//! mutated at random, executions are printed. `HIE_FUZZ_SECONDS` (5 each) sets the time. The coverage-guided targets are in
//! `fuzz/`.

#[path = "harness/fuzzed.rs"]
mod fuzzed;
mod harness;

use harness::{Rng, env_number};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

fn fuzz(name: &str, samples: &[&[u8]], words: &[&[u8]], target: fn(&[u8])) {
    let mut rng = Rng::from_env(name);
    let span = Duration::from_secs(env_number("HIE_FUZZ_SECONDS", 5));
    let (begin, mut executions) = (Instant::now(), 0u64);
    let mut pool: Vec<Vec<u8>> = samples.iter().map(|s| s.to_vec()).collect();
    while begin.elapsed() < span {
        for _ in 0..256 {
            let mut input = pool[rng.range(0, pool.len() as u64) as usize].clone();
            for _ in 0..rng.range(1, 8) {
                mutate(&mut input, &pool, words, &mut rng);
            }
            input.truncate(8192);
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                panic!("{name} fails on {:?}", String::from_utf8_lossy(&input));
            }
            executions += 1;
            // A drifting pool reaches further from the samples than single mutations do.
            if rng.chance(0.02) {
                let at = rng.range(0, 64) as usize;
                match pool.get_mut(samples.len() + at) {
                    Some(old) => *old = input,
                    None => pool.push(input),
                }
            }
        }
    }
    println!("{name}: {executions} executions in {:.0} s", begin.elapsed().as_secs_f64());
}

fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], words: &[&[u8]], rng: &mut Rng) {
    let at = rng.range(0, input.len() as u64 + 1) as usize;
    let end = input.len().min(at + rng.range(1, 40) as usize);
    match rng.range(0, 8) {
        0 if at < input.len() => input[at] ^= 1 << rng.range(0, 8),
        1 if at < input.len() => input[at] = rng.next() as u8,
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        4 | 5 if !words.is_empty() => {
            let word = words[rng.range(0, words.len() as u64) as usize];
            input.splice(at..at, word.iter().copied());
        }
        6 => {
            let other = &pool[rng.range(0, pool.len() as u64) as usize];
            let from = rng.range(0, other.len() as u64 + 1) as usize;
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.truncate(at),
    }
}

const ADT: &[u8] = b"MSH|^~\\&|A|B|C|D|20250101||ADT^A40^ADT_A39|ID1|P|2.5.1|||AL|NE||UNICODE UTF-8\rEVN|A40\r\
PID|1||77^^^H^MR~88^^^I&1.2.3&ISO||M\xc3\xbcller^\\T\\x\\X41\\||19700101\rMRG|99^^^H\rOBX|1|ST|x^y&z||v1~v2\r";

#[test]
fn mllp_framing() {
    let samples: &[&[u8]] =
        &[b"\x05\x0bMSH|^~\\&|\x1c\r\x0bPID\x1c\r", b"\x01\r\n\x0b\x1c\r\x0bx\x1c\x0by\x1c\x1c\r", b"\x03garbage"];
    fuzz("mllp", samples, &[b"\x0b", b"\x1c\r", b"\x1c", b"\r", b"\x1c\x0b", &[b'x'; 300]], fuzzed::mllp);
}

#[test]
fn hl7_and_fhir_reading() {
    let samples: &[&[u8]] = &[
        ADT,
        b"FHS|^~\\&|A\rBHS|^~\\&|B\rMSH|^~\\&|1\rPID|1\rMSH|^~\\&|2\rBTS|2\rFTS|1\r",
        b"MSH$%~\\&$A$B$C$D$2025$$ORU^R01$7$P$2.3\nPID$1\n",
        b"MSH|^~\\&|A|B|C|D|1||ACK|1|P|2.5\rMSA|AA|X1|ok\rERR|||207^x|E\r",
        b"{\"resourceType\":\"Patient\",\"id\":\"p1\",\"name\":[{\"family\":\"x\"}]}",
        b"<Patient xmlns=\"http://hl7.org/fhir\"><id value=\"p1\"/></Patient>",
    ];
    let words: &[&[u8]] = &[
        b"MSH|^~\\&|",
        b"|",
        b"^",
        b"~",
        b"&",
        b"\\",
        b"\r",
        b"\n",
        b"\\X0D\\",
        b"\\E\\",
        b"\xef\xbb\xbf",
        b"\xff",
        b"8859/1",
        b"ISO IR87",
        b"\x1b$B",
        b"PID",
        b"MRG|",
        b"\"resourceType\":",
        b"{",
        b"[",
        b"<?xml?>",
    ];
    fuzz("hl7", samples, words, fuzzed::hl7);
}

#[test]
fn proxy_headers() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x7f\0\0\x01\x7f\0\0\x02\x04\xd2\x16\x2e";
    let samples: &[&[u8]] =
        &[b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", b"PROXY UNKNOWN\r\n", b"PROXY TCP6 ::1 ::2 1 2\r\nGET", v2];
    fuzz(
        "proxy",
        samples,
        &[b"PROXY ", b"\r\n", b"TCP6", b"\r\n\r\n\0\r\nQUIT\n", b"\x21\x21\x00\x24", b"65536", b"\xff\xff"],
        fuzzed::proxy,
    );
}

#[test]
fn configuration() {
    let samples: &[&[u8]] = &[
        b"[node]\nname = \"a\"\nstore = \"s\"\n[http]\nlisten = \"127.0.0.1:1\"\n[[mllp]]\nname = \"m\"\nlisten = \"127.0.0.1:2\"\nmax_frame = \"1 MiB\"\n",
        b"[ledger]\nretention = \"3 days\"\nmax_size = \"1 GiB\"\n[limits]\nmax_pending = 5\n",
        b"[[channel]]\nname = \"a.b\"\nwhen = 'protocol == \"mllp\" && hl7(\"MSH-9.1\") == \"ADT\"'\norder = \"patient\"\n[[channel.route]]\nname = \"r\"\nmllp = [\"h:1\"]\nretry = { first = \"1s\" }\n",
        b"hl7(\"PID-3.1\").startsWith(\"x\") || header(\"a\") in [\"b\", \"c\"] && size > 10",
        b"patients().exists(p, p.matches(\"^[0-9]+$\")) ? true : !(1 + 2 * 3 == 7)",
    ];
    let words: &[&[u8]] = &[
        b"[[channel]]\n",
        b"[[channel.route]]\n",
        b"name = ",
        b"\"",
        b"'",
        b"=",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\n",
        b"when = 'true'\n",
        b"hl7(\"",
        b"&&",
        b"||",
        b"((((((((",
        b"!",
        b"-",
        b"9999999999999999999",
        b".map(x, x)",
        b"\"1 EiB\"",
        b"\"-1s\"",
        b"\xc3\xbc",
    ];
    fuzz("config", samples, words, fuzzed::config);
}

//! The sink as a subcommand: arguments to exit code.

use super::{Behaviour, Options, print::Printer, serve};
use crate::{config::ServerTls, message::hl7::ack::AckCode};
use bytes::Bytes;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

/// Receive messages for trials: count, print, answer as told
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hie sink --mllp 127.0.0.1:3575 --print\n  hie sink --http 127.0.0.1:3080 --status 503 --fail-rate 0.1\n  \
                  hie sink --mllp 127.0.0.1:3575 --answer AE --delay 200ms\n\n\
                  Without --mllp and --http it listens for MLLP on 127.0.0.1:3575 and for HTTP on 127.0.0.1:3080."
)]
pub struct SinkArgs {
    /// Listen for HL7 v2 over MLLP here
    #[arg(long, value_name = "ADDR:PORT")]
    mllp: Option<SocketAddr>,
    /// Listen for HTTP here (1.1 and 2, any method and path)
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// One line per message: type, control id, bytes, number so far
    #[arg(long)]
    print: bool,
    /// Acknowledgment code: AA, AE, AR, CA, CE or CR
    #[arg(long, value_name = "CODE", default_value = "AA", value_parser = ack_code)]
    answer: AckCode,
    /// HTTP status
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=599))]
    status: u16,
    /// File whose content is the HTTP response's body
    #[arg(long, value_name = "FILE")]
    reply: Option<PathBuf>,
    /// Part of the messages answered AR or 503
    #[arg(long, value_name = "0..1", default_value_t = 0.0, value_parser = rate)]
    fail_rate: f64,
    /// Part of the messages after which the connection is closed without an answer
    #[arg(long, value_name = "0..1", default_value_t = 0.0, value_parser = rate)]
    drop_rate: f64,
    /// Wait before each answer, for example 200ms
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// Never answer
    #[arg(long)]
    silent: bool,
    /// Acknowledge a control id that nobody sent
    #[arg(long)]
    wrong_id: bool,
    /// Write each message into this folder
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// PEM of a certificate: TLS on all listeners
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM of its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// PEM of the authorities for client certificates, which are then required
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
}

fn ack_code(text: &str) -> Result<AckCode, String> {
    AckCode::parse(text).ok_or_else(|| "one of AA, AE, AR, CA, CE, CR".into())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate)).ok_or_else(|| "a number from 0 to 1".into())
}

/// Runs the subcommand until it is interrupted or `--max` is reached. Exit codes: 0; 64 usage; 69 an address cannot be
/// used; 70 no runtime.
pub fn main(args: SinkArgs) -> ExitCode {
    let mut builder = match args.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        n => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(n.into());
            builder
        }
    };
    match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(e) => fail(70, format!("no runtime: {e}")),
    }
}

async fn run(args: SinkArgs) -> ExitCode {
    let reply = match &args.reply {
        None => Bytes::new(),
        Some(path) => match std::fs::read(path) {
            Ok(bytes) => bytes.into(),
            Err(e) => return fail(64, format!("--reply {}: {e}", path.display())),
        },
    };
    if let Some(folder) = &args.save
        && let Err(e) = std::fs::create_dir_all(folder)
    {
        return fail(64, format!("--save {}: {e}", folder.display()));
    }
    let neither = args.mllp.is_none() && args.http.is_none();
    let default = |port: u16| neither.then(|| SocketAddr::from(([127, 0, 0, 1], port)));
    let printer = args.print.then(|| Printer::new(args.json));
    let options = Options {
        mllp: args.mllp.or(default(3575)),
        http: args.http.or(default(3080)),
        tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| ServerTls {
            cert,
            key,
            client_required: args.tls_client_ca.is_some(),
            client_ca: args.tls_client_ca.clone(),
        }),
        behaviour: Behaviour {
            answer: args.answer,
            status: args.status,
            reply,
            fail_rate: args.fail_rate,
            drop_rate: args.drop_rate,
            delay: args.delay,
            silent: args.silent,
            wrong_id: args.wrong_id,
        },
        save: args.save.clone(),
        max: args.max,
        hook: printer.map(|printer| printer.hook()),
    };
    let handle = match serve(options).await {
        Ok(handle) => handle,
        Err(e) => return fail(69, e.to_string()),
    };
    for (name, address) in [("MLLP", handle.mllp), ("HTTP", handle.http)] {
        if let Some(address) = address {
            eprintln!("hie sink: {name} on {address}");
        }
    }
    let totals = super::print::totals(&handle, args.json);
    tokio::select! {
        () = handle.stopped() => {}
        _ = tokio::signal::ctrl_c() => handle.stop().await,
        () = totals => {}
    }
    super::print::total(handle.counts(), args.json);
    ExitCode::SUCCESS
}

fn fail(code: u8, text: String) -> ExitCode {
    eprintln!("hie sink: {text}");
    ExitCode::from(code)
}

/// The sink's TLS; the error names the file.
pub(super) fn server_tls(tls: &ServerTls) -> Result<ServerConfig, String> {
    let named = |path: &PathBuf, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let pem = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, String> {
        let list = CertificateDer::pem_file_iter(path).map_err(|e| named(path, &e))?;
        list.collect::<Result<_, _>>().map_err(|e| named(path, &e))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(pem(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if tls.client_required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|e| named(path, &e))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| named(&tls.key, &e))?;
    let mut config = builder.with_single_cert(pem(&tls.cert)?, key).map_err(|e| named(&tls.cert, &e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

//! The thin binary: arguments to exit code.

/// musl's own allocator is slow with threads; one allocator on every target keeps the figures comparable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    hie::cli::main()
}

//! The host: systemd, journald, signals, limits, listeners. The only user of nix.

//! Outbound gateways: HTTP, MLLP, files, and the balancing over targets.

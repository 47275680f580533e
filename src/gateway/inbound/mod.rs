//! Inbound gateways: HTTP, MLLP, watched folders.

//! Management API, health and metrics, on their own thread and runtime.

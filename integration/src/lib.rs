//! Acceptance, contract, security and crash tests; benches.

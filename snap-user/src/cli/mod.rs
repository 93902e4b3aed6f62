//! Arguments → one session call → output and exit code.

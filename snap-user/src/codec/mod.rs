//! Page bytes ↔ encoded bytes.
